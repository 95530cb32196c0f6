"""What every command does alike."""

import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Callable

import pytest
from conftest import ROOT, VARIANTS

from looped_jax.__main__ import commands
from looped_jax.config import KEYS, cli, default_config, get_key, set_key


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


FOREIGN = re.compile(r"^([WEIF]\d{4} |WARNING|DEBUG|INFO|.*Warning:|=== |learning/|20\d\d-)", re.M)


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is what talks")
def test_commands_do_not_pass_on_what_libraries_say(
    run_module: Callable, variants_run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    hidden = ("JAX_PLATFORMS", "XLA_FLAGS", "TF_CPP_MIN_LOG_LEVEL")
    environment = {k: v for k, v in os.environ.items() if k not in hidden}
    run = f"--workdir={variants_run / 'looped'}"
    (tmp_path / "small.py").write_text(VARIANTS.split("    plans = ")[0] + "    return config\n")
    for module, *arguments in (
        ("main", f"--config={tmp_path / 'small.py'}", f"--workdir={tmp_path / 'run'}"),
        ("evaluate", run),
    ):
        done = run_module(f"looped_jax.{module}", *arguments, env=environment)
        assert "Traceback" not in done.stderr
        assert not FOREIGN.search(done.stderr), done.stderr


def test_a_tilde_is_the_home_folder_in_every_path_and_in_no_text(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOME", "/home/of")
    own = cli.Flags()
    out, runs = own.path("out", "", "A folder."), own.paths("runs", "Folders.")
    prompt = own.string("prompt", "", "A text.")
    own.values(["x", "--out=~/a", "--runs=~/a,b,~", "--prompt=~/a"])
    assert (out.value, prompt.value) == ("/home/of/a", "~/a")
    assert runs.value == ["/home/of/a", "b", "/home/of"]
    config = default_config()
    paths = [key for key, known in KEYS.items() if known.path]
    assert {"data.path", "data.vocabulary", "train.start_from", "eval.data_dir"} == {*paths}
    for key in paths:
        set_key(config, key, "~/a")
        assert get_key(config, key) == "/home/of/a"
    set_key(config, "data.vocabulary", "own:~/a")
    assert config.data.vocabulary == "own:/home/of/a"


def test_every_flag_that_is_a_path_is_one() -> None:
    texts = ("prompt", "title", "tasks", "task", "plan", "topology", "files", "stop")
    for name in commands():
        text = (ROOT / "looped_jax" / f"{name}.py").read_text()
        for flag, help in re.findall(r'_FLAGS\.string\(\s*"(\w+)",[^"]*"[^"]*", "?([^"]*)', text):
            assert flag in texts or not re.search("folder|file|run to|The run", help, re.I), flag


def test_a_file_that_the_system_refuses_is_named(fails_in_one_line: Callable) -> None:
    line = fails_in_one_line("looped_jax.main", f"--config={'x' * 300}")
    assert line.startswith("error: xxx") and "too long" in line


def test_what_a_terminal_cannot_show_is_written_in_ascii(run_module: Callable) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = run_module("looped_jax.evaluate", "--workdir=é⊗", env=environment)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert r"\xe9\u2297 holds no run" in done.stderr


def test_a_line_is_one_and_no_longer_than_anyone_reads(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        cli._exit(f"error: two\nlines, and {'9' * 5000} is too large", 2)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and len(said) < 300
    assert said.startswith("error: two lines, and 999") and said.endswith("is too large\n")
