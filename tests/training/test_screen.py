"""What a run says while it trains, and what its lines of metrics say of it."""

import pathlib
import re
from typing import Any

import numpy as np
import pytest
from etils import epath
from helpers import small_config

from looped_jax.errors import UserError
from looped_jax.training import screen, trainer
from looped_jax.training.checkpoint import read_meta
from looped_jax.training.job import make_job
from looped_jax.training.metrics_file import read_metrics
from looped_jax.training.optimizer import make_optimizer
from looped_jax.training.stopwatch import Stopwatch
from looped_jax.training.workdir import check_owner

TOKENS = 16 * 5  # Of a step: rows of a batch, and the product and its factors.


def train(workdir: pathlib.Path, **keys: Any) -> list[dict[str, float]]:
    """Trains; returns the lines with a training loss."""
    trainer.train(make_job(small_config(**keys)), epath.Path(workdir))
    return [line for line in read_metrics(epath.Path(workdir)) if "train/loss" in line]


def said(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The lines on stderr, without the bar; nothing goes to stdout, which is for scripts."""
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = re.split(r"[\r\n]", captured.err)
    return [line.rstrip() for line in lines if line.strip() and "%|" not in line]


def test_a_run_says_where_it_begins_what_it_measures_and_how_it_ended(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path / "run")
    first, at_6, at_12, *table = said(capsys)
    workdir = tmp_path / "run"
    assert (
        first.startswith("small 1x2: ") and " parameters, 80 tokens a step (16 rows of 5)" in first
    )
    assert re.search(rf"on \d+ x cpu, in {workdir}; starts anew$", first)
    assert re.fullmatch(r"step 6: group_z7_n4 \d+\.\d%", at_6)
    assert re.fullmatch(r"step 12: group_z7_n4 \d+\.\d%", at_12)
    rows = dict(re.split(r"  +", line.strip()) for line in table)
    assert [*rows] == ["step", "tokens seen", "time trained", "train/loss", "group_z7_n4 (%)"]
    assert (rows["step"], rows["tokens seen"]) == ("12 of 12", "960")
    assert f"{rows['group_z7_n4 (%)']}%" == at_12.split()[-1]


def test_a_run_says_that_it_was_resumed_or_done_before(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path / "run")
    finished = said(capsys)
    train(tmp_path / "run")
    first, *table = said(capsys)
    assert first.endswith("; was done before") and table == finished[3:]
    (tmp_path / "run" / "checkpoints" / "12").rename(tmp_path / "lost")
    train(tmp_path / "run")
    assert said(capsys)[0].endswith("; resumed from step 8")
    origin = tmp_path / "run" / "checkpoints" / "8"
    train(tmp_path / "other", train__start_from=str(origin))
    assert said(capsys)[0].endswith(f"; goes on from {origin}: step 8, row 128")


def test_what_interrupts_the_bar_is_a_line_of_its_own(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path / "run")
    for line in capsys.readouterr().err.split("\n"):
        last = line.rsplit("\r", 1)[-1]
        assert not ("%|" in last and "group_z7_n4" in last), line


def test_a_table_has_only_what_is_known() -> None:
    assert screen.closing(5, []) == ""
    assert screen.closing(5, [{"step": 3, "train/loss": 1.0}]).split() == [
        *("step", "3", "of", "5"),
        *("train/loss", "1.0000"),
    ]


def test_lines_have_the_learning_rate_that_the_step_was_made_with(tmp_path: pathlib.Path) -> None:
    keys: dict[str, Any] = dict(
        optimizer__name="sgd",
        optimizer__clip_norm=0.0,
        optimizer__group_rates=(("embed", 0.5),),
        train__log_every=1,
    )
    lines = train(tmp_path / "run", **keys)
    config = small_config(**keys)
    ones = {name: np.ones((2, 2), np.float32) for name in ("embed", "kernel")}
    axes = dict.fromkeys(ones, ("embed", "mlp"))
    sgd = make_optimizer(config.optimizer, config.train.steps, axes)
    state, rates = sgd.init(ones), []
    for _ in range(12):
        update, state = sgd.update(ones, state, ones)
        rates.append(-float(update["kernel"][0, 0]))
        assert float(update["embed"][0, 0]) == pytest.approx(-rates[-1] / 2)  # Its group's factor.
    assert [line["train/learning_rate"] for line in lines] == pytest.approx(rates, rel=1e-6)
    assert rates[3] == pytest.approx(config.optimizer.learning_rate)
    assert 0 < rates[-1] < rates[3]


def test_tokens_and_seconds_go_on_where_the_run_stopped(tmp_path: pathlib.Path) -> None:
    whole = train(tmp_path / "run")
    assert [line["train/tokens"] for line in whole] == [TOKENS * s for s in range(2, 13, 2)]
    (tmp_path / "run" / "checkpoints" / "12").rename(tmp_path / "lost")
    again = train(tmp_path / "run")

    def computed(lines: list[dict[str, float]]) -> list[dict[str, float]]:
        return [{k: v for k, v in x.items() if not k.startswith("perf/")} for x in lines]

    assert computed(again) == computed(whole)
    seconds = [line["perf/seconds"] for line in again]
    assert seconds == sorted(seconds) and seconds[0] > 0
    # Those of the steps that were not done again are still there.
    assert seconds[:4] == [line["perf/seconds"] for line in whole[:4]]


def test_seconds_since_the_last_line_before_a_stop_are_kept_by_its_checkpoint(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rare = small_config(train__steps=4, train__log_every=100, checkpoint__every=2)
    workdir = epath.Path(tmp_path / "run")
    trainer.train(make_job(rare), workdir)
    (tmp_path / "run" / "checkpoints" / "4").rename(tmp_path / "lost")
    befores: list[float] = []

    class Watched(Stopwatch):
        def __init__(self, *of_step: Any, before: float):
            befores.append(before)
            super().__init__(*of_step, before=before)

    monkeypatch.setattr(trainer, "Stopwatch", Watched)
    trainer.train(make_job(rare), workdir)
    assert befores == [read_meta(workdir / "checkpoints" / "2")["seconds"]]
    assert befores[0] > 0


def test_tokens_count_those_of_the_run_that_it_goes_on_from(tmp_path: pathlib.Path) -> None:
    train(tmp_path / "run")
    keys = dict(train__start_from=str(tmp_path / "run" / "checkpoints" / "8"), train__batch_size=32)
    expected = [TOKENS * (8 + 2 * (step - 8)) for step in (10, 12)]
    lines = train(tmp_path / "other", checkpoint__every=10, **keys)
    assert [line["train/tokens"] for line in lines] == expected
    (tmp_path / "other" / "checkpoints" / "12").rename(tmp_path / "lost")
    lines = train(tmp_path / "other", checkpoint__every=10, **keys)
    assert [line["train/tokens"] for line in lines] == expected
    with_other_data = {**keys, "seed": 1}
    lines = train(tmp_path / "tuned", **with_other_data)
    assert lines[0]["train/tokens"] == 2 * 2 * TOKENS


def test_a_run_of_other_steps_is_told_how_to_go_on(tmp_path: pathlib.Path) -> None:
    workdir = tmp_path / "run"
    train(workdir)
    hint = f"--config.train.start_from={workdir / 'checkpoints' / '12'}, it goes on from step 12"
    with pytest.raises(UserError) as caught:
        check_owner(small_config(train__steps=24), epath.Path(workdir))
    assert hint in str(caught.value)
    with pytest.raises(UserError) as caught:
        check_owner(small_config(train__steps=24, seed=1), epath.Path(workdir))
    assert "start_from" not in str(caught.value)


def test_a_run_says_once_that_its_accelerators_peak_is_not_known(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "peak_flops", lambda device: None)
    lines = train(tmp_path / "run")
    told = [line for line in said(capsys) if "mfu" in line]
    assert told == ["no perf/mfu: looped_jax/cost/peak_flops.py has no peak FLOP/s of 'cpu'"]
    assert not any("perf/mfu" in line for line in lines)
    assert any("perf/tokens_per_second" in line for line in lines)
