"""The command `python -m looped_jax.generate`."""

import json
import pathlib
from collections.abc import Callable

import pytest


def test_a_synthetic_model_answers_in_its_tasks_own_text(
    variants_run: pathlib.Path, run_module: Callable
) -> None:
    workdir = f"--workdir={variants_run / 'looped'}"
    arguments = ("--prompt=3 1 4 2", "--max_tokens=3", "--loops=3")
    done = run_module("looped_jax.generate", workdir, *arguments)
    assert done.returncode == 0, done.stderr
    streamed = done.stdout.rstrip("\n")
    done = run_module(
        "looped_jax.generate", workdir, "--prompt=-", *arguments[1:], input="3 1 4 2\n0\n"
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["prompt"] for line in lines] == ["3 1 4 2", "0"]
    assert lines[0]["text"] == streamed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "say --prompt=TEXT"),
        (("--prompt=x",), "'x' is not in this task's vocabulary"),
        (("--prompt=3", "--top_p=2"), "top_p=2.0 must be above 0"),
        (("--prompt=3", "--step=5"), "has no checkpoint of step 5"),
    ],
)
def test_bad_input_gets_one_line(
    arguments: tuple, message: str, variants_run: pathlib.Path, fails_in_one_line: Callable
) -> None:
    workdir = f"--workdir={variants_run / 'looped'}"
    assert message in fails_in_one_line("looped_jax.generate", workdir, *arguments)
