"""Runs whose folder is in a bucket, as real processes: killed, cut off, refused."""

import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import time
from typing import Any

import pytest
from conftest import ROOT
from etils import epath
from object_stores import Store, wait_until

from looped_jax.training.checkpoint import read_meta, saved_steps

EXPERIMENT = """
from looped_jax.config import default_config

def get_config():
    config = default_config()
    config.data.task = "group_z7_n4"
    config.model.update(plan="1x2", d_model=16, num_heads=4, d_ff=32)
    config.train.update(steps=20, batch_size=16, log_every=1)
    config.checkpoint.update(every=5, keep=2)
    config.eval.update(every=10, examples=32)
    return config
"""


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("experiment") / "tiny.py"
    path.write_text(EXPERIMENT)
    return path


@pytest.fixture(scope="module")
def on_disk(experiment: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> epath.Path:
    """The same run in a folder of this disk."""
    workdir = tmp_path_factory.mktemp("disk") / "run"
    finish(start(experiment, workdir))
    return epath.Path(workdir)


def start(experiment: pathlib.Path, workdir: Any, *more: str, **environment: str) -> Any:
    command = [sys.executable, "-m", "looped_jax.main", f"--config={experiment}"]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return subprocess.Popen(
        [*command, f"--workdir={workdir}", *more],
        cwd=ROOT,
        env={**os.environ, **environment},
        **pipes,
    )


def finish(process: Any, code: int = 0) -> str:
    _, errors = process.communicate(timeout=300)
    assert process.returncode == code, errors
    assert "Traceback" not in errors
    return errors


def same(one: epath.Path, other: epath.Path) -> bool:
    """Whether two runs ended with the same bits and have the same metrics."""

    def metrics(workdir: epath.Path) -> list[dict[str, Any]]:
        lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
        return [{k: v for k, v in line.items() if k[:5] != "perf/"} for line in lines]

    sums = [read_meta(run / "checkpoints" / "20")["checksums"] for run in (one, other)]
    return sums[0] == sums[1] and metrics(one) == metrics(other)


def test_a_run_that_is_killed_again_and_again_ends_with_the_bits_of_one_on_a_disk(
    store: Store, experiment: pathlib.Path, on_disk: epath.Path
) -> None:
    workdir, chance = epath.Path(f"{store}/killed"), random.Random(0)
    for _ in range(3):
        process, before = start(experiment, workdir), len(store.network.requests)
        while len(store.network.requests) < before + 12 and process.poll() is None:
            time.sleep(0.05)
        time.sleep(chance.uniform(0, 2.5))
        process.kill()
        process.communicate()
        for step in saved_steps(workdir):
            read_meta(workdir / "checkpoints" / str(step))  # What is there is whole.
    finish(start(experiment, workdir))
    assert same(workdir, on_disk)
    assert saved_steps(workdir) == [15, 20]
    known = ("config.json", "metrics.jsonl", "run.json", "checkpoints/", "events.out")
    assert all(name.startswith(known) for name in store.names("killed"))


def test_requests_that_are_slow_or_fail_for_a_moment_change_nothing(
    store: Store, experiment: pathlib.Path, on_disk: epath.Path
) -> None:
    count = 0

    def fault(method: str, path: str) -> int | None:
        nonlocal count
        count += 1
        if count % 11 == 0:
            time.sleep(0.3)
        return 503 if count % 29 == 0 else None

    store.network.fault = fault
    finish(start(experiment, f"{store}/slow"))
    store.network.fault = lambda method, path: None
    assert count > 40
    assert same(epath.Path(f"{store}/slow"), on_disk)


def test_a_bucket_that_refuses_ends_the_run_in_one_line_and_the_same_command_goes_on(
    store: Store, experiment: pathlib.Path, on_disk: epath.Path
) -> None:
    workdir = epath.Path(f"{store}/refused")
    process = start(experiment, workdir, "--config.train.steps=20")
    wait_until(lambda: bool(saved_steps(workdir)) or process.poll() is not None)
    writes = ("PUT", "POST", "PATCH", "DELETE")
    store.network.fault = lambda method, path: 403 if method in writes else None
    errors = finish(process, 1)
    store.network.fault = lambda method, path: None
    said = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert len(said) == 1 and "the same command" in said[0], errors
    finish(start(experiment, workdir))
    assert same(workdir, on_disk)


def test_a_stop_saves_and_goes_on(
    store: Store, experiment: pathlib.Path, on_disk: epath.Path
) -> None:
    workdir = epath.Path(f"{store}/stopped")
    process = start(experiment, workdir)
    wait_until(lambda: (workdir / "metrics.jsonl").exists())
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert not (workdir / ".lock.json").exists()
    finish(start(experiment, workdir))
    assert same(workdir, on_disk)


@pytest.mark.parametrize("store", ["s3"], indirect=True)
def test_what_a_bucket_cannot_hold_is_refused_before_anything_is_there(
    store: Store, experiment: pathlib.Path
) -> None:
    errors = finish(start(experiment, f"{store}/tracked", "--config.train.log_to=('wandb',)"), 2)
    assert errors.count("\n") == 1 and "wandb" in errors
    errors = finish(start(experiment, f"{store.scheme}://none-such/run"), 2)
    assert errors.count("\n") == 1 and "cannot write in workdir s3://none-such/run" in errors
    assert store.names("tracked") == []


@pytest.mark.parametrize("store", ["gs"], indirect=True)
def test_several_processes_write_one_run_to_gs_and_go_on_after_a_kill(
    store: Store, experiment: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    def both(workdir: Any) -> list[Any]:
        with socket.socket() as listener:
            listener.bind(("localhost", 0))
            address = f"localhost:{listener.getsockname()[1]}"
        common = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
        own = ({**common, "JAX_PROCESS_ID": str(i), "JAX_NUM_CPU_DEVICES": "1"} for i in range(2))
        return [start(experiment, workdir, **environment) for environment in own]

    workdir = epath.Path(f"{store}/several")
    processes = both(workdir)
    wait_until(lambda: bool(saved_steps(workdir)) or processes[0].poll() is not None, 240)
    for process in processes:
        process.kill()
        process.communicate()
    for run in (workdir, tmp_path / "disk"):
        for process in both(run):
            finish(process)
    assert same(workdir, epath.Path(tmp_path / "disk"))


@pytest.mark.parametrize("store", ["s3"], indirect=True)
def test_several_processes_are_refused_on_s3_before_anything_is_there(
    store: Store, experiment: pathlib.Path
) -> None:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        address = f"localhost:{listener.getsockname()[1]}"
    common = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    processes = [
        start(experiment, f"{store}/two", **common, JAX_PROCESS_ID=str(i), JAX_NUM_CPU_DEVICES="1")
        for i in range(2)
    ]
    said = [finish(process, 2) for process in processes]
    assert "several processes cannot write one checkpoint" in said[0] and not said[1]
    assert store.names("two") == []


@pytest.mark.parametrize(
    "command",
    [
        ("report", "--runs=runs", "--out=s3://bucket/x"),
        ("explain", "--workdir=runs", "--prompt=1 2", "--out=s3://bucket/x"),
        ("export", "--workdir=runs", "--out=gs://bucket/x"),
        ("retrofit", "--source=runs", "--plan=2x2", "--out=gs://bucket/x"),
        ("sweep", "--sweep=experiments/sweeps/phop_small.py", "--workdir=gs://bucket/x"),
    ],
    ids=lambda command: command[0],
)
def test_what_is_written_on_a_disk_only_says_so(command: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"looped_jax.{command[0]}", *command[1:]],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "on a disk only" in done.stderr
