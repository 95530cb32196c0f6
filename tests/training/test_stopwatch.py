import jax
import pytest

from looped_jax.training import stopwatch
from looped_jax.training.stopwatch import Stopwatch


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, to be set."""
    now = [0.0]
    monkeypatch.setattr(stopwatch.time, "perf_counter", lambda: now[0])
    return now


def test_steps_are_timed_and_the_rest_lowers_goodput(clock: list[float]) -> None:
    watch = Stopwatch(tokens=100, peak_flops=500.0, device=jax.devices()[0])
    clock[0] = 10.0  # Ten seconds to restore and compile.
    watch.restart(1)
    for step, seconds in ((2, 1.0), (3, 1.0), (4, 2.0)):
        clock[0] += seconds
        watch.ended(step, 40.0 + 10.0 * (step == 4))
        watch.ended(step, 1e9)
    clock[0] += 6.0  # An evaluation.
    watch.restart(4)
    scalars = watch.scalars()
    assert scalars["perf/tokens_per_second"] == pytest.approx(3 * 100 / 4)
    assert scalars["perf/mfu"] == pytest.approx(130 / 4 / 500)
    assert scalars["perf/step_seconds_p50"] == 1.0
    assert scalars["perf/step_seconds_p95"] == 2.0
    assert scalars["perf/goodput"] == pytest.approx(4 / 20)
    assert "perf/tokens_per_second" not in watch.scalars()  # Nothing since.


def test_seconds_are_those_of_all_starts_whatever_was_done(clock: list[float]) -> None:
    watch = Stopwatch(tokens=1, peak_flops=1.0, device=jax.devices()[0], before=30.0)
    clock[0] = 12.0  # Compiling, and no step has ended yet.
    assert watch.scalars()["perf/seconds"] == 42.0


def test_steps_that_ended_unseen_share_their_time(clock: list[float]) -> None:
    watch = Stopwatch(tokens=1, peak_flops=1.0, device=jax.devices()[0])
    watch.restart(0)
    clock[0] = 6.0
    watch.ended(3, 1.0)
    assert watch.scalars()["perf/step_seconds_p50"] == 2.0


def test_without_a_known_peak_there_is_no_mfu(clock: list[float]) -> None:
    watch = Stopwatch(tokens=100, peak_flops=None, device=jax.devices()[0])
    watch.restart(0)
    clock[0] = 2.0
    watch.ended(1, 1e9)
    scalars = watch.scalars()
    assert "perf/mfu" not in scalars and scalars["perf/tokens_per_second"] == 50.0
