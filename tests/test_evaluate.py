"""The command `python -m looped_jax.evaluate`."""

import json
import pathlib
from collections.abc import Callable

import pytest


def test_evaluating_the_last_checkpoint_repeats_the_runs_own_numbers(
    variants_run: pathlib.Path, run_module: Callable
) -> None:
    done = run_module("looped_jax.evaluate", f"--workdir={variants_run / 'looped'}")
    assert done.returncode == 0, done.stderr
    metrics = json.loads(done.stdout)
    assert metrics.pop("step") == 12
    lines = (variants_run / "looped" / "metrics.jsonl").read_text().splitlines()
    last = next(
        line for line in map(json.loads, reversed(lines)) if any("eval/" in k for k in line)
    )
    for name, value in metrics.items():
        assert value == pytest.approx(last[name], rel=1e-5)


def test_loops_step_tasks_and_split_can_be_chosen(
    variants_run: pathlib.Path, run_module: Callable
) -> None:
    workdir = f"--workdir={variants_run / 'looped'}"
    more = ("--loops=5", "--step=8", "--tasks=group_z7_n3,group_z7_n4", "--split=test")
    done = run_module("looped_jax.evaluate", workdir, *more)
    assert done.returncode == 0, done.stderr
    metrics = json.loads(done.stdout)
    assert metrics["step"] == 8
    assert {"eval/group_z7_n3/accuracy", "eval/group_z7_n4/accuracy"} < set(metrics)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--step=7"], "has no checkpoint of step 7; it has 8, 12"),
        (["--tasks=addition"], "addition has another vocabulary than group_z7_n4"),
        (["--config.train.stepz=1"], "did you mean 'train.steps'"),
    ],
)
def test_bad_input_gets_one_line(
    arguments: list[str], message: str, variants_run: pathlib.Path, fails_in_one_line: Callable
) -> None:
    workdir = f"--workdir={variants_run / 'looped'}"
    assert message in fails_in_one_line("looped_jax.evaluate", workdir, *arguments)


def test_loops_of_a_plan_without_loops_are_refused(
    variants_run: pathlib.Path, fails_in_one_line: Callable
) -> None:
    line = fails_in_one_line(
        "looped_jax.evaluate", f"--workdir={variants_run / 'base'}", "--loops=2"
    )
    assert "plan 1x1 has no looped segment" in line


def test_a_folder_without_a_run_is_refused(
    tmp_path: pathlib.Path, fails_in_one_line: Callable
) -> None:
    line = fails_in_one_line("looped_jax.evaluate", f"--workdir={tmp_path}")
    assert "holds no run with a checkpoint" in line
