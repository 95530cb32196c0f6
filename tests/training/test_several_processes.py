"""Real processes on this machine as one run: as one process, preempted, resumed, bereaved."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, VARIANTS
from helpers import write_language_model, write_pile
from launching import Cloud, wait_until

LONG = ("--config.train.steps=100000", "--config.eval.every=100000", "--config.checkpoint.every=25")


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("experiment") / "several.py"
    one_run = VARIANTS.split("    plans = ")[0] + "    return config\n"
    path.write_text(one_run.replace("config.model.update(", 'config.model.update(plan="1x2", '))
    return path


def start(
    experiment: pathlib.Path, workdir: pathlib.Path, processes: int, *arguments: str
) -> list[subprocess.Popen[str]]:
    """Trains; four devices in all, shared out over so many processes."""
    return launch("main", processes, f"--config={experiment}", f"--workdir={workdir}", *arguments)


def several_processes(processes: int) -> dict[str, str]:
    """The environment that they share."""
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        port = listener.getsockname()[1]
    return {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_PROCESSES": str(processes)}


def launch(
    module: str, processes: int, *arguments: str, program: tuple[str, ...] = ()
) -> list[subprocess.Popen[str]]:
    several = several_processes(processes)
    return [
        subprocess.Popen(
            [sys.executable, *(program or ("-m", f"looped_jax.{module}")), *arguments],
            cwd=ROOT,
            env={
                **os.environ,
                **(several if processes > 1 else {}),
                **({"JAX_PROCESS_ID": str(i)} if processes > 1 else {}),
                "JAX_NUM_CPU_DEVICES": str(4 // processes),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(processes)
    ]


def finish(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    done = []
    for process in processes:
        out, err = process.communicate(timeout=300)
        lines = [line for line in out.splitlines() if "[Gloo]" not in line and "peer" not in line]
        done.append((process.returncode, "\n".join(lines), err))
    return done


def losses(workdir: pathlib.Path) -> dict[tuple[int, str], float]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {
        (line["step"], name): value
        for line in lines
        for name, value in line.items()
        if name.endswith(("loss", "accuracy", "grad_norm", "state_norm"))
    }


def wait_for(workdir: pathlib.Path, step: int, processes: list[subprocess.Popen[str]]) -> None:
    """Until a checkpoint of at least this step is there."""
    for _ in range(3000):
        folders = (workdir / "checkpoints").glob("*") if workdir.exists() else ()
        if any(folder.name.isdigit() and int(folder.name) >= step for folder in folders):
            return
        assert all(process.poll() is None for process in processes), finish(processes)
        time.sleep(0.1)
    raise AssertionError("no checkpoint in time")


@pytest.fixture(scope="module")
def by_one(experiment: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    workdir = tmp_path_factory.mktemp("one") / "run"
    ((code, _, err),) = finish(start(experiment, workdir, 1))
    assert code == 0, err
    return workdir


@pytest.mark.parametrize(
    ("processes", "mesh"),
    [(4, ()), (2, ("--config.mesh.data=1", "--config.mesh.tensor=4"))],
    ids=["4", "2 that hold the same rows"],
)
def test_several_processes_train_as_one(
    by_one: Any, experiment: Any, tmp_path: pathlib.Path, processes: int, mesh: tuple[str, ...]
) -> None:
    workdir = tmp_path / "run"
    done = finish(start(experiment, workdir, processes, *mesh))
    assert [code for code, _, _ in done] == [0] * processes, done
    # Only the first one speaks.
    assert [bool(out) for _, out, _ in done] == [True] + [False] * (processes - 1)
    found, expected = losses(workdir), losses(by_one)
    assert found.keys() == expected.keys() and len(found) > 10
    np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=1e-4)
    assert len(list(workdir.glob("events.out.tfevents.*"))) == 1


def test_several_processes_evaluate_downstream_tasks_as_one(tmp_path: pathlib.Path) -> None:
    write_pile(tmp_path / "pile")
    task = "varassign_depth0_math"
    write_language_model(
        tmp_path / "lm.py",
        data__path=str(tmp_path / "pile"),
        data__length=96,
        train__steps=2,
        eval__examples=4,
        eval__tasks=("text", task),
        eval__style="line",
        eval__shots=0,
    )
    done = finish(start(tmp_path / "lm.py", tmp_path / "run", 2))
    assert [code for code, _, _ in done] == [0, 0], done
    assert (2, f"eval/{task}/accuracy") in losses(tmp_path / "run")

    def evaluate(processes: int) -> tuple[dict[str, float], list[str]]:
        done = finish(launch("evaluate", processes, f"--workdir={tmp_path / 'run'}", "--limit=6"))
        assert [code for code, _, _ in done] == [0] * processes, done
        assert [bool(out) for _, out, _ in done] == [True] + [False] * (processes - 1)
        return json.loads(done[0][1]), predictions.read_text().splitlines(keepends=True)

    predictions = tmp_path / "run/evaluations/step2_line_shots0_limit6" / f"{task}.jsonl"
    by_one = evaluate(1)
    assert len(by_one[1]) == 6
    # What there is from before the first process knows, and none asks it again.
    predictions.write_text("".join(by_one[1][:2]))
    by_two = evaluate(2)
    assert by_two[1] == by_one[1]
    assert by_two[0] == pytest.approx(by_one[0], rel=1e-4)


def test_a_signal_to_one_stops_all_at_one_step_and_another_number_goes_on(
    experiment: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    workdir = tmp_path / "run"
    processes = start(experiment, workdir, 2, *LONG)
    wait_for(workdir, 25, processes)
    processes[1].send_signal(signal.SIGTERM)
    done = finish(processes)
    assert [code for code, _, _ in done] == [0] * 2, done
    assert "stopped by SIGTERM at step" in done[0][2]
    step = max(int(path.name) for path in (workdir / "checkpoints").glob("[0-9]*"))
    assert f"at step {step}, saved" in done[0][2]

    more = f"--config.train.steps={step + 5}"
    refused = finish(start(experiment, workdir, 2, more))  # Another length is another run.
    assert [code for code, _, _ in refused] == [2, 2]
    assert refused[0][2].count("\n") == 1 and "another config" in refused[0][2]

    alone = start(experiment, workdir, 1, *LONG)
    wait_for(workdir, step + 25, alone)
    alone[0].send_signal(signal.SIGTERM)
    assert finish(alone)[0][0] == 0


def test_a_signal_during_an_evaluation_does_not_wait_for_its_end(
    experiment: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    workdir = tmp_path / "run"
    steps = ("--config.train.steps=100000", "--config.checkpoint.every=25")
    long = (*steps, "--config.eval.every=25", "--config.eval.examples=100000")
    processes = start(experiment, workdir, 2, *long)
    wait_for(workdir, 25, processes)
    time.sleep(1.0)
    processes[1].send_signal(signal.SIGTERM)
    told = time.monotonic()
    done = finish(processes)
    assert time.monotonic() - told < 30  # The evaluation takes minutes.
    assert [code for code, _, _ in done] == [0] * 2, done
    assert "stopped by SIGTERM at step 25, saved" in done[0][2]
    assert not any(name.startswith("eval/") for _, name in losses(workdir))


BREAKS = """
import os, runpy, sys
from looped_jax.training.metrics_file import MetricsWriter

def write(self, step, scalars):
    if os.environ["JAX_PROCESS_ID"] == "{process}" and step >= 3:
        raise {error}

MetricsWriter.write = write
sys.argv[0] = "main"
runpy.run_module("looped_jax.main", run_name="__main__")
"""


@pytest.mark.parametrize("process", [0, 1])
@pytest.mark.parametrize("error", ["ZeroDivisionError('by nothing')", "UserError('unlike others')"])
def test_an_error_of_one_process_reaches_the_other_as_a_line_within_10_seconds(
    experiment: pathlib.Path, tmp_path: pathlib.Path, process: int, error: str
) -> None:
    code = BREAKS.format(process=process, error=error)
    code = f"from looped_jax.errors import UserError\n{code}"
    arguments = (f"--config={experiment}", f"--workdir={tmp_path / 'run'}", *LONG)
    both = launch("main", 2, *arguments, program=("-c", code))
    broken, other = both[process], both[1 - process]
    broken.wait(timeout=240)
    ended = time.monotonic()
    other.wait(timeout=60)
    assert time.monotonic() - ended < 10
    done = finish(both)
    assert done[process][0] == (2 if "User" in error else 1) and done[1 - process][0] == 1
    said = [line for line in done[1 - process][2].splitlines() if "stopped, as" in line]
    assert len(said) == 1 and f"process {process} did: " in said[0], done
    assert "unlike others" in said[0] or "error above" in said[0]


def test_a_lost_process_ends_the_others_and_says_so(
    experiment: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    # Side by side, as the time goes in waiting for a sign of life.
    runs = [start(experiment, tmp_path / f"without_{lost}", 2, *LONG) for lost in (0, 1)]
    for lost, processes in enumerate(runs):
        wait_for(tmp_path / f"without_{lost}", 25, processes)
        processes[lost].kill()
    killed = time.monotonic()
    for lost, processes in enumerate(runs):
        code, _, err = finish([processes[1 - lost]])[0]
        assert time.monotonic() - killed < 60
        assert code != 0
        assert "another task died" in err
        finish([processes[lost]])


@pytest.mark.parametrize("lost", [0, 1])
def test_a_lost_process_starts_again_with_the_others_and_nothing_differs(
    experiment: pathlib.Path, tmp_path: pathlib.Path, lost: int
) -> None:
    steps = ("--config.train.steps=120", "--config.train.log_every=10", "--config.eval.every=60")
    often = (*steps, "--config.checkpoint.every=20")
    finish(start(experiment, tmp_path / "whole", 2, *often))

    cloud = Cloud(tmp_path / "cloud")
    hosts = {**several_processes(2), "JAX_NUM_CPU_DEVICES": "2", "HOSTS": "2"}
    workdir = tmp_path / "killed"
    command = ("-m", "looped_jax.main", f"--config={experiment}", f"--workdir={workdir}", *often)
    try:
        cloud("create", **hosts)
        cloud("install", **hosts)
        cloud("run", "python", *command, **hosts)
        wait_for(workdir, 40, [])
        os.kill(int((cloud.host(lost) / "keep" / "pid").read_text()), signal.SIGKILL)
        wait_until(lambda: cloud("status").count("keep: done, newest checkpoint 120") == 2, 240)
        logs = [(cloud.host(number) / "keep" / "log").read_text() for number in (0, 1)]
    finally:
        cloud.close()
    assert "ended with exit status 137" in logs[lost]
    assert all(" start 2 on " in log for log in logs), logs
    assert "resumed from step" in logs[0]
    assert losses(workdir) == losses(tmp_path / "whole")


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"JAX_COORDINATOR_ADDRESS": "x:1"}, "JAX_NUM_PROCESSES, JAX_PROCESS_ID"),
        (
            {
                "JAX_COORDINATOR_ADDRESS": "x:1",
                "JAX_NUM_PROCESSES": "2",
                "JAX_PROCESS_ID": "2",
            },
            "JAX_PROCESS_ID=2 is not in 0",
        ),
    ],
)
def test_half_an_environment_is_refused(
    fails_in_one_line: Any, experiment: pathlib.Path, environment: dict[str, str], message: str
) -> None:
    arguments = ("looped_jax.main", f"--config={experiment}")
    line = fails_in_one_line(*arguments, env={**os.environ, **environment})
    assert message in line
