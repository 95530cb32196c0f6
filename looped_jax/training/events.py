"""What is done between steps."""

import dataclasses
from collections.abc import Callable


@dataclasses.dataclass(frozen=True)
class Event:
    """Something done after every so many steps, and after the last."""

    every: int
    # Returns whether it took time, which is then no step's.
    act: Callable[[], bool]
    # Done first, too, where a run goes on from a step after which it was due and was not done.
    is_made_up_for: bool = False

    def due(self, step: int, last: int) -> bool:
        """Whether it is to be done after ``step`` of a run, or stage, that ends with ``last``."""
        return step > 0 and (step % self.every == 0 or step == last)
