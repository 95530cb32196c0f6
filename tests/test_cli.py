"""What every command does alike."""

import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable

import pytest
from conftest import ROOT, VARIANTS

from looped_jax.__main__ import commands


def test_the_package_lists_its_commands(run_module: Callable) -> None:
    done = run_module("looped_jax")
    assert done.returncode == 0
    assert {"main", "evaluate", "generate", "score", "report", "sweep"} < set(commands())
    for name, what in commands().items():
        assert f"{name} " in done.stdout and what in done.stdout


@pytest.mark.parametrize("name", commands())
def test_a_command_helps(name: str, run_module: Callable) -> None:
    done = run_module(f"looped_jax.{name}", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert commands()[name] in done.stdout
    assert "--config.KEY=VALUE" in done.stdout


@pytest.mark.parametrize("arguments", [[], [".tasks", "--list"], [".main", "--help"]], ids=str)
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_has_enough_is_no_fault(arguments: list[str], unbuffered: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)  # As `| head` when it is done.
    module, *rest = arguments or [""]
    done = subprocess.run(
        [sys.executable, "-m", f"looped_jax{module}", *rest],
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


def test_training_goes_on_when_nobody_reads_what_it_says(tmp_path: pathlib.Path) -> None:
    (tmp_path / "small.py").write_text(VARIANTS.split("    plans = ")[0] + "    return config\n")
    reader, writer = os.pipe()
    command = [sys.executable, "-m", "looped_jax.main", f"--config={tmp_path / 'small.py'}"]
    process = subprocess.Popen(
        [*command, f"--workdir={tmp_path / 'run'}"], cwd=ROOT, stdout=writer, stderr=writer
    )
    os.close(writer)
    os.close(reader)
    assert process.wait(timeout=240) == 0
    lines = [json.loads(x) for x in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 12
    assert (tmp_path / "run/checkpoints/12").is_dir()


def test_a_tilde_is_the_home_folder(run_module: Callable, tmp_path: pathlib.Path) -> None:
    environment = {**os.environ, "HOME": str(tmp_path)}
    done = run_module("looped_jax.evaluate", "--workdir=~/runs", env=environment)
    assert f"{tmp_path}/runs holds no run" in done.stderr
