"""What is done between steps, and in which order."""

import gc
import pathlib
from typing import Any

import jax
import pytest
from etils import epath
from helpers import small_config, write_pile

from looped_jax.config.validation import validate
from looped_jax.errors import RunError, UserError
from looped_jax.evaluation.metric_table import shown_evaluation
from looped_jax.training import trainer
from looped_jax.training.evaluations import Evaluations
from looped_jax.training.events import Event
from looped_jax.training.job import make_job
from looped_jax.training.metrics_file import read_metrics
from looped_jax.training.state import init_state


def test_an_event_is_due_after_every_so_many_steps_and_after_the_last() -> None:
    event = Event(4, lambda: False)
    assert [step for step in range(11) if event.due(step, last=10)] == [4, 8, 10]


def evaluated(workdir: pathlib.Path) -> list[dict[str, Any]]:
    lines = read_metrics(epath.Path(workdir))
    return [line for line in lines if any(name.startswith("eval/") for name in line)]


def test_what_evaluates_lets_go_of_the_parameters(tmp_path: pathlib.Path) -> None:
    write_pile(tmp_path / "pile")
    config = small_config(
        data__task="text",
        data__path=str(tmp_path / "pile"),
        data__length=96,
        train__steps=1,
        train__batch_size=8,
        eval__examples=4,
        eval__tasks=("text", "varassign_depth0_math"),
        eval__style="line",
        eval__shots=0,
    )
    job = make_job(config)
    evaluations = Evaluations(job)
    before = {id(array) for array in jax.live_arrays()}
    trainer.train(job, epath.Path(tmp_path / "run"), evaluations)
    assert len(evaluated(tmp_path / "run")) == 1
    gc.collect()
    left = [array.shape for array in jax.live_arrays() if id(array) not in before]
    assert (259 + 5, 16) not in left, left  # The embedding: bytes, rounded up to a multiple of 8.


def test_a_step_is_saved_before_it_is_evaluated_and_no_evaluation_is_lost(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    job = make_job(small_config(train__steps=4, eval__every=2, checkpoint__every=2))
    trainer.train(job, epath.Path(tmp_path / "whole"))

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


def test_held_out_rows_are_evaluated_at_several_loop_counts() -> None:
    job = make_job(small_config(eval__loops=(1, 2)))
    state = init_state(job.model, job.optimizer, job.config.seed, job.layout)
    found = Evaluations(job).measure(state.params, lambda: False)
    assert found is not None
    name = f"eval/{job.config.data.task}"
    for kind in ("loss", "accuracy"):  # The plan's own number is among them.
        assert found[f"{name}/{kind}"] == found[f"{name}/loops_2/{kind}"]
    assert found[f"{name}/loss"] != found[f"{name}/loops_1/loss"]
    assert shown_evaluation(found).count("%") == 1
    with pytest.raises(UserError, match=r"config.eval.loops=\(4,\): .*has no looped segment"):
        Evaluations(make_job(small_config(model__plan="2x1", eval__loops=(4,))))
    with pytest.raises(UserError, match=r"config.eval.loops: 0 is not a number of loops"):
        validate(small_config(eval__loops=(0,)))
