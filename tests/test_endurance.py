"""A few of the disturbances of benchmarks/endurance.py."""

import os

import pytest

from benchmarks import endurance


@pytest.fixture(autouse=True)
def environment_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("JAX_PLATFORMS", "JAX_COMPILATION_CACHE_DIR"):
        monkeypatch.setenv(name, os.environ[name])


@pytest.mark.parametrize("part", ["training", "preparing"])
def test_nothing_is_lost_by_what_disturbs_a_command(
    part: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = endurance.EXPERIMENT.replace(f"steps={endurance.STEPS}", "steps=600")
    monkeypatch.setattr(endurance, "EXPERIMENT", experiment)
    monkeypatch.setattr(endurance, "STEPS", 600)
    assert endurance.main(3, 1, [part], saves=False) == 0, capsys.readouterr().out


def test_what_is_lost_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def spoilt(self: endurance.Preparing) -> endurance.Ended:
        ended = self.finish(self.start(self.here))
        self.flip(next(self.here.glob("*.array_record")))
        return ended

    monkeypatch.setattr(endurance.Preparing, "ways", lambda self: {"spoilt": lambda: spoilt(self)})
    assert endurance.main(1, 0, ["preparing"], saves=False) == 1
