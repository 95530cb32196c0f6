"""How fast a run is: what becomes `perf/…` in its metrics."""

import statistics
import time

import jax


class Stopwatch:
    """Times steps from the end of one to the end of the next.

    What is not a step (compiling, evaluating, saving) is left out of their times, and lowers
    goodput.
    """

    def __init__(
        self, tokens: int, peak_flops: float | None, device: jax.Device, before: float = 0.0
    ):
        """``tokens`` of a step, on all devices, of which ``device`` is one; ``peak_flops`` of all
        in a second, None if not known; ``before``: seconds that earlier starts have trained."""
        self._tokens, self._peak, self._device = tokens, peak_flops, device
        self._begin, self._before = time.perf_counter(), before
        self._since: float | None = None  # When the last step ended, or the watch was restarted.
        self._step = 0
        self._seconds: list[float] = []  # Of the steps since they were last asked for.
        self._flops = 0.0  # Of the same steps.
        self._in_steps = 0.0

    def restart(self, step: int) -> None:
        """Steps up to ``step`` have ended, and something else has been done since."""
        self._since, self._step = time.perf_counter(), step

    def ended(self, step: int, flops: float) -> None:
        """``step``, of so many model FLOPs, has just ended; told again of the same one, nothing
        happens."""
        if self._since is None or step <= self._step:
            return
        now = time.perf_counter()
        self._flops += flops * (step - self._step)
        self._seconds += [(now - self._since) / (step - self._step)] * (step - self._step)
        self._in_steps += now - self._since
        self._since, self._step = now, step

    @property
    def seconds(self) -> float:
        """Since the start, whatever was done, and those of earlier starts."""
        return self._before + time.perf_counter() - self._begin

    def scalars(self) -> dict[str, float]:
        """Scalars about the steps since they were last asked for; goodput is of the whole process,
        seconds of all starts.

        perf/seconds (see ``seconds``), perf/tokens_per_second, perf/step_seconds_p50 and _p95,
        perf/mfu (model FLOPs over peak, where that is known), perf/goodput (share of the time since
        the start that was spent in steps) and, where the device tells, perf/device_memory_gb (its
        highest use so far).
        """
        since_begin = time.perf_counter() - self._begin
        scalars = {"perf/seconds": self.seconds}
        if self._seconds:
            total = sum(self._seconds)
            ordered = sorted(self._seconds)
            scalars["perf/tokens_per_second"] = len(self._seconds) * self._tokens / total
            if self._peak is not None:
                scalars["perf/mfu"] = self._flops / total / self._peak
            scalars["perf/step_seconds_p50"] = statistics.median(ordered)
            scalars["perf/step_seconds_p95"] = ordered[int(0.95 * (len(ordered) - 1) + 0.5)]
            scalars["perf/goodput"] = self._in_steps / since_begin
            self._seconds, self._flops = [], 0.0
        if memory := (self._device.memory_stats() or {}).get("peak_bytes_in_use"):
            scalars["perf/device_memory_gb"] = memory / 1e9
        return scalars
