"""What is done between steps, and in which order."""

import pathlib
from typing import Any

import pytest
from etils import epath
from helpers import small_config

from looped_jax.errors import RunError
from looped_jax.training import trainer
from looped_jax.training.evaluations import Evaluations
from looped_jax.training.events import Event
from looped_jax.training.job import make_job
from looped_jax.training.metrics_file import read_metrics


def test_an_event_is_due_after_every_so_many_steps_and_after_the_last() -> None:
    event = Event(4, lambda: False)
    assert [step for step in range(11) if event.due(step, last=10)] == [4, 8, 10]


def evaluated(workdir: pathlib.Path) -> list[dict[str, Any]]:
    lines = read_metrics(epath.Path(workdir))
    return [line for line in lines if any(name.startswith("eval/") for name in line)]


def test_saving_before_evaluating_loses_no_evaluation(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    job = make_job(small_config(train__steps=4, eval__every=2, checkpoint__every=2))
    trainer.train(job, epath.Path(tmp_path / "whole"))
    log, evaluate, save = range(3)
    as_listed = trainer._Run.events.fget
    assert as_listed is not None
    monkeypatch.setattr(
        trainer._Run,
        "events",
        property(lambda run: tuple(as_listed(run)[i] for i in (log, save, evaluate))),
    )

    def fails(*_: Any) -> None:
        raise RunError("the machine goes down")

    with monkeypatch.context() as patched:
        patched.setattr(Evaluations, "measure", fails)
        with pytest.raises(RunError, match="goes down"):
            trainer.train(job, epath.Path(tmp_path / "cut"))
    assert (tmp_path / "cut" / "checkpoints" / "2").exists()
    assert not evaluated(tmp_path / "cut")
    trainer.train(job, epath.Path(tmp_path / "cut"))
    assert [line["step"] for line in evaluated(tmp_path / "cut")] == [2, 4]
    assert evaluated(tmp_path / "cut") == evaluated(tmp_path / "whole")
