"""A profiler trace of a run under way: `kill -USR1 PID` records its next steps."""

import signal
from types import FrameType

import jax
from etils import epath
from tqdm import tqdm

STEPS = 5


class ProfileOnSignal:
    """Records STEPS steps into WORKDIR/profile after SIGUSR1, for TensorBoard or Perfetto."""

    def __init__(self, workdir: epath.Path):
        self._folder = workdir / "profile"
        self._asked = False
        self._until: int | None = None
        self._previous = signal.signal(signal.SIGUSR1, self._handle)

    def _handle(self, _: int, __: FrameType | None) -> None:
        self._asked = True

    def before(self, step: int) -> None:
        """To be called before each step."""
        if self._until is not None and step >= self._until:
            self._stop()
        if self._asked and self._until is None:
            self._asked = False
            self._until = step + STEPS
            jax.profiler.start_trace(str(self._folder))

    def _stop(self) -> None:
        jax.profiler.stop_trace()
        self._until = None
        tqdm.write(f"profiled {STEPS} steps: {self._folder}")

    def close(self) -> None:
        """Ends a recording under way; gives the signal back."""
        if self._until is not None:
            self._stop()
        signal.signal(signal.SIGUSR1, self._previous)
