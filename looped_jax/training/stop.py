"""SIGTERM: the step under way is finished and saved before a run ends."""

import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

from looped_jax.parallel import distributed


class StopSignal:
    """Remembers a SIGTERM; a context manager, in which it does.

    Several processes must stop at the same place: there JAX receives the signal, and they agree on
    the number of the question at which they all hear of it. So all ask equally often.
    """

    def __init__(self, still_ours: Callable[[], None] = lambda: None) -> None:
        """``still_ours`` raises if the run has to stop at once, unsaved: asked with each `poll`."""
        self._still_ours = still_ours
        self._received = False
        self._asked = 0
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

    def poll(self) -> bool:
        """Whether there is a stop to make; to be asked by all processes before every step, and
        where something long, an evaluation, can be broken off."""
        self._still_ours()
        if self._several and not self._received:
            self._asked += 1
            self._received = distributed.stop_at(self._asked)
        return self._received
