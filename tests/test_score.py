"""The command `python -m looped_jax.score`."""

import json
import pathlib
from collections.abc import Callable

import pytest


def write(path: pathlib.Path, *records: object) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return f"--input={path}"


def test_a_file_is_scored_and_what_is_odd_is_counted(
    tmp_path: pathlib.Path, run_module: Callable
) -> None:
    file = write(
        tmp_path / "p.jsonl",
        {"id": "1", "prediction": "Paris", "answers": ["paris"]},
        {"id": "1", "prediction": "Rome", "answers": ["paris"]},
        {"prediction": "x", "answers": ["y"]},
        {"id": "3", "answers": ["z"]},
        {"id": "4", "prediction": "z", "answers": []},
    )
    done = run_module("looped_jax.score", "--task=triviaqa", file)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "task": "triviaqa",
        "examples": 4,
        "exact": pytest.approx(100 / 3),
        "f1": pytest.approx(100 / 3),
        "duplicate_ids_left_out": 1,
        "lines_without_id": 1,
        "missing_predictions": 1,
        "examples_without_answers": 1,
    }


@pytest.mark.parametrize(
    ("arguments", "content", "message"),
    [
        ((), "", "say --task=NAME and --input=FILE"),
        (("--task=squad",), '{"answers": []}\n', "did you mean 'squad_v2'"),
        (("--task=drop",), "", "has no records"),
        (("--task=drop",), '{"answers": ["x"]}\nnonsense\n', "line 2: not JSON"),
        (("--task=drop",), '{"prediction": "x"}\n', 'line 1: no "answers" list'),
    ],
)
def test_bad_input_gets_one_line(
    arguments: tuple,
    content: str,
    message: str,
    tmp_path: pathlib.Path,
    fails_in_one_line: Callable,
) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(content)
    file = (f"--input={path}",) if arguments else ()
    assert message in fails_in_one_line("looped_jax.score", *arguments, *file)


def test_a_missing_file_is_named(fails_in_one_line: Callable) -> None:
    line = fails_in_one_line("looped_jax.score", "--task=drop", "--input=/nowhere.jsonl")
    assert "no file /nowhere.jsonl" in line
