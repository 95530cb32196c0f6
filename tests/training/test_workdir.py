"""One run at a time writes in a workdir, also after a kill: real processes."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
from typing import Any

import pytest
from conftest import ROOT, VARIANTS
from etils import epath
from helpers import small_config

from looped_jax.config import load_experiment
from looped_jax.errors import UserError
from looped_jax.training.job import make_job
from looped_jax.training.trainer import train
from looped_jax.training.workdir import HOLDER, LOCK, check_owner, locked

LONG = "--config.train.steps=100000"


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("experiment") / "small.py"
    path.write_text(VARIANTS.split("    plans = ")[0] + "    return config\n")
    return path


def start(experiment: pathlib.Path, workdir: pathlib.Path, *more: str) -> Any:
    command = [sys.executable, "-m", "looped_jax.main", f"--config={experiment}"]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return subprocess.Popen([*command, f"--workdir={workdir}", *more], cwd=ROOT, **pipes)


def wait_for(path: pathlib.Path, process: Any) -> None:
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and process.poll() is None:
        if path.exists():
            return
        time.sleep(0.02)
    raise TimeoutError(process.communicate())


def test_a_second_start_is_refused_and_the_first_goes_on(
    experiment: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    workdir = tmp_path / "run"
    first = start(experiment, workdir, LONG)
    wait_for(workdir / "metrics.jsonl", first)
    second = start(experiment, workdir, LONG)
    out, err = second.communicate(timeout=240)
    assert (second.returncode, out) == (2, "")
    assert err.count("\n") == 1
    assert f"process {first.pid} on " in err and "trains in it" in err
    assert first.poll() is None
    # As the operating system ends it: nothing is tidied up.
    first.kill()
    first.communicate()
    assert (workdir / HOLDER).exists()
    third = start(experiment, workdir, LONG)
    deadline = time.monotonic() + 240
    while third.poll() is None and time.monotonic() < deadline:
        holder = workdir / HOLDER
        if holder.exists() and str(third.pid) in holder.read_text():
            break
        time.sleep(0.02)
    else:
        raise AssertionError(third.communicate())
    time.sleep(2)
    third.send_signal(signal.SIGTERM)
    _, err = third.communicate(timeout=240)
    assert third.returncode == 0, err
    assert not (workdir / HOLDER).exists()


def test_the_lock_names_its_holder_and_is_given_back(tmp_path: pathlib.Path) -> None:
    workdir = epath.Path(tmp_path / "run")
    with locked(workdir):
        assert json.loads((workdir / HOLDER).read_text())["process"] == os.getpid()
        with (
            pytest.raises(UserError, match=rf"process {os.getpid()} on .* trains in it"),
            locked(workdir),
        ):
            pass
    assert not workdir.exists()  # Nothing was written there.
    with locked(workdir):
        (workdir / "config.json").write_text("{}")
    with locked(workdir):
        pass
    assert (workdir / "config.json").exists()


def test_what_is_no_folder_cannot_be_locked(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UserError, match="exists and is not a run"),
        locked(epath.Path(tmp_path / "file")),
    ):
        pass


ANOTHER = "train.start_from={run}/checkpoints/12"


@pytest.mark.parametrize(
    "overrides, said",
    [
        (("train.start_from=gone",), "no checkpoint at gone"),
        (("train.start_from={run}",), "no checkpoint at"),
        ((ANOTHER, "model.d_ff=64"), "of another model"),
        ((ANOTHER, "data.task=group_z9_n4"), "vocabulary"),
        (("data.task=text", "data.length=32", "data.path={run}"), "train-"),
        (("data.task=text", "data.length=32", "data.path=gone"), "gone"),
        (("eval.tasks=nothing",), "nothing"),
        (("eval.loops=(9,)", "model.plan=2x1"), "loops"),
        (("data.length=2",), "config.data.length"),
        (("mesh.data=64",), "config.mesh"),
        (("loop_loss.kind=gate",), "loop_loss.kind"),
        (("optimizer.frozen=('nothing',)",), "nothing"),
        (("model.d_model=4194304",), "memory"),
        (("train.batch_size=536870912",), "config.train.batch_size"),
    ],
    ids=str,
)
def test_a_start_that_is_refused_claims_nothing(
    overrides: tuple[str, ...],
    said: str,
    experiment: pathlib.Path,
    tmp_path: pathlib.Path,
    variants_run: pathlib.Path,
) -> None:
    given = dict(o.format(run=variants_run / "base").split("=", 1) for o in overrides)
    with pytest.raises(UserError, match=re.escape(said)):
        train(make_job(load_experiment(str(experiment), given)), epath.Path(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_what_a_start_leaves_that_was_killed_before_it_claimed_anything_is_no_obstacle(
    tmp_path: pathlib.Path,
) -> None:
    workdir = epath.Path(tmp_path / "run")
    for folder in (workdir, workdir / "base"):
        (folder / "checkpoints").mkdir(parents=True)
        (folder / LOCK).touch()
        (folder / HOLDER).write_text("{")
    check_owner(small_config(), workdir)
    (workdir / "base" / "notes.txt").touch()
    with pytest.raises(UserError, match="exists and is not a run"):
        check_owner(small_config(), workdir)
