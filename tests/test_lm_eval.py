"""The command `python -m looped_jax.lm_eval`, as far as it goes without the harness; with it:
tests/interop/test_lm_eval_command.py."""

import argparse
import json
import os
import pathlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from looped_jax import lm_eval
from looped_jax.errors import UserError


def parsed(arguments: list[str], overrides: dict[str, str] | None = None) -> argparse.Namespace:
    """As a parser like the harness's reads them: of equal options the last."""
    command, *rest = lm_eval._asked(arguments, "looped_jax", overrides or {})
    assert command == "run"
    parser = argparse.ArgumentParser()
    for name in ("--model", "--batch_size", "--tasks", "--config"):
        parser.add_argument(name)
    parser.add_argument("--model_args", nargs="+", action="append", default=[])
    return parser.parse_args(rest)


def test_without_the_package_it_says_what_to_install(
    fails_in_one_line: Callable, run_module: Callable, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "lm_eval.py").write_text("raise ModuleNotFoundError('gone', name='lm_eval')\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    line = fails_in_one_line("looped_jax.lm_eval", "--tasks", "x", env=environment)
    assert "looped_jax.lm_eval needs the package lm_eval: pip install -e '.[lm-eval]'" in line
    done = run_module("looped_jax.lm_eval", "--help", env=environment)
    assert done.returncode == 0 and "model_args workdir=" in done.stdout
    assert "options cannot be shown: looped_jax.lm_eval needs the package" in done.stdout


def test_our_model_and_its_own_number_of_rows_are_what_is_not_said() -> None:
    found = parsed(["--tasks", "a", "--model_args", "workdir=runs/x"])
    assert (found.model, found.batch_size, found.tasks) == ("looped_jax", "auto", "a")
    found = parsed(["run", "--tasks", "a", "--model", "hf", "--batch_size=4"])
    assert (found.model, found.batch_size) == ("hf", "4")


def test_with_a_file_of_options_the_file_says_the_model() -> None:
    for options in (["--config", "c.yaml"], ["--config=c.yaml"], ["-Cc.yaml"]):
        assert lm_eval._asked(options, "looped_jax", {}) == ["run", *options]


def test_other_commands_of_the_harness_are_left_alone() -> None:
    assert lm_eval._asked(["ls", "tasks"], "looped_jax", {"a": "b"}) == ["ls", "tasks"]


@given(st.dictionaries(st.text(), st.text(), min_size=1), st.lists(st.sampled_from(["a=1", "b=2"])))
def test_overrides_are_a_model_argument_beside_others(
    overrides: dict[str, str], others: list[str]
) -> None:
    said = ["--model_args", *others] if others else []
    found = parsed(["--tasks", "a", *said], overrides).model_args
    assert json.loads(found[0][0]) == {"config": overrides}
    assert found[1:] == ([others] if others else [])


def test_what_a_parser_refuses_and_an_error_of_many_lines_are_one_line() -> None:
    with pytest.raises(UserError, match="--x: what"):
        lm_eval._refuse(argparse.ArgumentParser(), "--x: what")
    assert lm_eval._line(ValueError("a\n  b")) == "a b"
    assert lm_eval._line(KeyError()) == "KeyError"


def test_only_what_a_reader_of_options_raises_is_the_users() -> None:
    try:
        json.loads("{")
    except ValueError as error:
        assert lm_eval._raised_in(error) == "json.decoder"
        assert not lm_eval._raised_in(error).startswith(lm_eval._READERS)
