"""Runs that are killed, stopped, refused or broken, as real processes."""

import json
import os
import pathlib
import resource
import signal
import subprocess
import sys
import time
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
import pytest
from conftest import ROOT

EXPERIMENT = """
from looped_jax.config import default_config

def get_config():
    config = default_config()
    config.data.task = "group_z7_n4"
    config.model.update(plan="1x2", d_model=16, num_heads=4, d_ff=32)
    config.loop.update(injection="add", state="noise")  # What is drawn is drawn again.
    config.counts.update(distribution="lognormal_poisson", by="row", gradient_loops=1)
    config.optimizer.update(name="adamw", learning_rate=1e-2, warmup_steps=4)
    config.train.update(steps=60, batch_size=16, log_every=1)
    config.checkpoint.update(every=7, keep=2)
    config.eval.update(every=10, examples=32)
    return config
"""


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("experiment") / "tiny.py"
    path.write_text(EXPERIMENT)
    return path


def start(experiment: pathlib.Path, workdir: pathlib.Path, *more: str, **kwargs: Any) -> Any:
    command = [
        *(sys.executable, "-m", "looped_jax.main"),
        *(f"--config={experiment}", f"--workdir={workdir}", *more),
    ]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return subprocess.Popen(command, cwd=ROOT, **pipes, **kwargs)


def finish(process: Any, code: int = 0) -> str:
    _, errors = process.communicate(timeout=300)
    assert process.returncode == code, errors
    assert "Traceback" not in errors
    return errors


def wait_for_step(workdir: pathlib.Path, step: int) -> None:
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        path = workdir / "metrics.jsonl"
        if path.exists() and f'"step": {step},' in path.read_text():
            return
        time.sleep(0.01)
    raise TimeoutError(f"step {step} was not reached")


def computed(workdir: pathlib.Path) -> list[dict[str, float]]:
    """The metrics apart from speeds, which no two runs share."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith("perf/")} for line in lines]


def checkpoint(workdir: pathlib.Path, step: int) -> Any:
    with ocp.StandardCheckpointer() as reader:
        return reader.restore((workdir / "checkpoints" / str(step) / "state").resolve())


def assert_same_run(here: pathlib.Path, there: pathlib.Path) -> None:
    assert computed(here) == computed(there)
    a, b = checkpoint(here, 60), checkpoint(there, 60)
    assert list(a["params"]) == list(b["params"])
    for x, y in zip(*(ocp.tree.to_flat_dict(t).values() for t in (a, b)), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.fixture(scope="module")
def never_stopped(experiment: pathlib.Path, tmp_path_factory: Any) -> pathlib.Path:
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    finish(start(experiment, workdir))
    return workdir


def test_a_run_writes_what_it_promises(never_stopped: pathlib.Path) -> None:
    assert json.loads((never_stopped / "config.json").read_text())["train"]["steps"] == 60
    lines = [json.loads(x) for x in (never_stopped / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "train/loss" in line] == list(range(1, 61))
    evaluated = [line["step"] for line in lines if "eval/group_z7_n4/accuracy" in line]
    assert evaluated == [10, 20, 30, 40, 50, 60]
    assert any("perf/tokens_per_second" in x and "perf/mfu" in x for x in lines)
    assert list(never_stopped.glob("events.out.tfevents.*"))
    assert sorted(p.name for p in (never_stopped / "checkpoints").iterdir()) == ["56", "60"]


def test_a_killed_run_resumes_to_bitwise_the_same_parameters_and_metrics(
    experiment: pathlib.Path, never_stopped: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    workdir = tmp_path / "killed"
    for step in (9, 31):  # Between checkpoints, so that steps are repeated.
        process = start(experiment, workdir)
        wait_for_step(workdir, step)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 59, "train/lo')  # As a kill in the middle of a write leaves it.
    finish(start(experiment, workdir))
    assert_same_run(workdir, never_stopped)


def test_sigterm_saves_and_exits_0_and_the_run_goes_on_exactly(
    experiment: pathlib.Path, never_stopped: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    workdir = tmp_path / "stopped"
    process = start(experiment, workdir)
    wait_for_step(workdir, 9)
    process.send_signal(signal.SIGTERM)
    errors = finish(process)
    saved = max(int(p.name) for p in (workdir / "checkpoints").iterdir())
    assert f"stopped by SIGTERM at step {saved}" in errors
    assert saved >= 9
    finish(start(experiment, workdir))
    assert_same_run(workdir, never_stopped)


def test_a_sigterm_during_evaluation_does_not_wait_for_its_end(
    experiment: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    workdir = tmp_path / "stopped"
    long = ("--config.eval.examples=100000", "--config.eval.every=2")  # 6,250 batches.
    process = start(experiment, workdir, *long)
    wait_for_step(workdir, 2)
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    assert "stopped by SIGTERM at step 2, saved" in finish(process)
    assert not any("eval/group_z7_n4/loss" in line for line in computed(workdir))
    assert checkpoint(workdir, 2)["step"] == 2


def test_a_sigterm_in_the_last_evaluation_is_not_forgotten(
    experiment: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    workdir = tmp_path / "stopped"
    long = ("--config.train.steps=2", "--config.eval.examples=100000", "--config.eval.batch_size=8")
    told_apart = {**os.environ, "LOOPED_JAX_EXIT_STOPPED": "75"}
    process = start(experiment, workdir, *long, env=told_apart)
    wait_for_step(workdir, 2)
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    assert "stopped by SIGTERM at step 2, saved" in finish(process, 75)
    assert not any("eval/group_z7_n4/loss" in line for line in computed(workdir))
    finish(start(experiment, workdir, *long[:1], "--config.eval.examples=100000"))
    assert any("eval/group_z7_n4/loss" in line for line in computed(workdir))


def test_a_run_killed_while_it_claimed_its_workdir_can_start_there(
    experiment: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    workdir = tmp_path / "claimed"
    workdir.mkdir()
    (workdir / "config.json.tmp").write_text('{"half":')
    finish(start(experiment, workdir, "--config.train.steps=2"))


def test_a_finished_run_is_left_alone(
    experiment: pathlib.Path, never_stopped: pathlib.Path
) -> None:
    before = computed(never_stopped)
    finish(start(experiment, never_stopped))
    assert computed(never_stopped) == before


def test_a_workdir_of_another_config_is_refused_and_untouched(
    experiment: pathlib.Path, never_stopped: pathlib.Path
) -> None:
    def modified() -> dict[pathlib.Path, int]:
        files = (p for p in never_stopped.rglob("*") if not p.name.startswith(".lock"))
        return {p: p.stat().st_mtime_ns for p in files}

    before = modified()
    process = start(experiment, never_stopped, "--config.optimizer.learning_rate=0.5")
    errors = finish(process, code=2)
    assert "optimizer.learning_rate: 0.5 now, 0.01 there" in errors
    assert modified() == before


def test_a_non_finite_loss_stops_with_the_step_and_how_to_go_on(
    experiment: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    workdir = tmp_path / "diverged"
    rate = "--config.optimizer.learning_rate=1e30"
    process = start(experiment, workdir, rate, "--config.optimizer.warmup_steps=1000000")
    # Rises by 1e24 a step: the parameters overflow after some steps.
    errors = finish(process, code=1).strip().splitlines()[-1]
    assert "at step" in errors and "checkpoint" in errors and "--workdir" in errors
    for line in computed(workdir):
        assert all(np.isfinite(v) for v in line.values())


def test_another_run_can_start_from_a_checkpoint(
    experiment: pathlib.Path, never_stopped: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    workdir = tmp_path / "continued"
    origin = never_stopped / "checkpoints" / "56"
    changed = "--config.optimizer.learning_rate=0.001"
    finish(start(experiment, workdir, f"--config.train.start_from={origin}", changed))
    assert [line["step"] for line in computed(workdir) if "train/loss" in line] == [57, 58, 59, 60]
    # The step after the checkpoint sees the same parameters and the same batch.
    assert computed(workdir)[0]["train/loss"] == next(
        line["train/loss"] for line in computed(never_stopped) if line["step"] == 57
    )
    other = start(
        experiment,
        tmp_path / "other",
        f"--config.train.start_from={origin}",
        "--config.model.d_ff=64",
    )
    assert "is of another model or optimizer" in finish(other, code=2)


def test_a_save_that_fails_keeps_the_last_good_checkpoint(
    experiment: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    workdir = tmp_path / "full"
    finish(start(experiment, workdir, "--config.train.steps=7"))

    def no_room() -> None:
        # A write beyond this size fails, as on a full disk; metrics and events still fit.
        resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, 12_000))

    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": ""}
    unchanged = "--config.train.steps=7"
    again = tmp_path / "full2"
    process = start(experiment, again, unchanged, preexec_fn=no_room, env=environment)
    errors = finish(process, code=1).strip().splitlines()[-1]
    assert "the checkpoint of step 7 could not be saved" in errors
    assert "there is no checkpoint yet" in errors
    # With room again, the same command finishes as if nothing had been.
    finish(start(experiment, again, unchanged))
    assert computed(again) == computed(workdir)
