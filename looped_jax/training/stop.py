"""SIGTERM: the step under way is finished and saved before a run ends."""

import signal
from types import FrameType
from typing import Any

from looped_jax.parallel import distributed


class StopSignal:
    """Remembers a SIGTERM; a context manager, in which it does.

    Several processes must stop at the same step: there JAX receives the signal, and they agree.
    """

    def __init__(self) -> None:
        self._received = False
        self._several = distributed.several()
        self._previous: Any = None

    def __enter__(self) -> "StopSignal":
        if not self._several:
            self._previous = signal.signal(signal.SIGTERM, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        if not self._several:
            signal.signal(signal.SIGTERM, self._previous)

    def _handle(self, _: int, __: FrameType | None) -> None:
        self._received = True

    def at(self, step: int) -> bool:
        """Whether to stop before this step; to be asked at every step."""
        if self._several and not self._received:
            self._received = distributed.stop_at(step)
        return self._received

    def poll(self) -> bool:
        """Whether there is a stop to make, for what may be broken off between two steps."""
        return self._received
