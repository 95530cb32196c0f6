"""The command `python -m looped_jax.generate`."""

import json
import pathlib
import re
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
    assert "mean loops of a token: 3.00; cache (per_loop)" in done.stderr


def test_caches_and_exits_are_chosen_and_told(
    variants_run: pathlib.Path, run_module: Callable
) -> None:
    workdir = f"--workdir={variants_run / 'looped'}"
    arguments = ("--prompt=3 1 4 2", "--max_tokens=3", "--loops=4", "--cache=ring:2")
    done = run_module("looped_jax.generate", workdir, *arguments, "--exit=state:1e9")
    assert done.returncode == 0, done.stderr
    assert "mean loops of a token: 1.00; cache (ring:2): 0.0" in done.stderr


def test_a_draft_says_the_same_and_what_was_accepted(
    variants_run: pathlib.Path, run_module: Callable
) -> None:
    workdir = f"--workdir={variants_run / 'looped'}"
    arguments = ("--prompt=3 1 4 2", "--max_tokens=6", "--loops=4")
    plain = run_module("looped_jax.generate", workdir, *arguments)
    done = run_module("looped_jax.generate", workdir, *arguments, "--draft=2:3")
    assert done.returncode == 0, done.stderr
    assert done.stdout == plain.stdout
    said = r"draft 2:3: \d+\.\d% of the drafted tokens accepted, [1-4]\.\d\d tokens per pass"
    assert re.search(said, done.stderr)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "say --prompt=TEXT"),
        (("--prompt=x",), "'x' is not in this task's vocabulary"),
        (("--prompt=3", "--top_p=2"), "top_p=2.0 must be above 0"),
        (("--prompt=3", "--step=5"), "has no checkpoint of step 5"),
        (("--prompt=3", "--loops=100000000000"), "loops=100000000000 is more than 1,000,000"),
        (("--prompt=3", "--cache=all"), "cache='all' is none of per_loop, last, mean"),
        (("--prompt=3", "--draft=2:4"), "draft=2:4 has to have fewer loops than the 2 that verify"),
        (("--prompt=3", "--draft=1", "--temperature=1"), "draft=1:4 goes with greedy decoding"),
        (("--prompt=3", "--exit=cdf:0.5"), "exit=cdf:0.5 asks a gate; the model has none"),
    ],
)
def test_bad_input_gets_one_line(
    arguments: tuple, message: str, variants_run: pathlib.Path, fails_in_one_line: Callable
) -> None:
    workdir = f"--workdir={variants_run / 'looped'}"
    assert message in fails_in_one_line("looped_jax.generate", workdir, *arguments)
