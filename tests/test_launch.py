"""The launch scripts, as far as they can be tried without the machines they start."""

import os
import subprocess
from typing import Any

import pytest
from conftest import ROOT


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [str(ROOT / "launch" / "tpu_vm.sh"), *arguments]
    own = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return subprocess.run(
        command, env={**own, "DRY_RUN": "1", **environment}, capture_output=True, text=True
    )


WHERE = dict(NAME="loop", ZONE="us-west4-a")


@pytest.mark.parametrize(
    ("arguments", "environment", "printed"),
    [
        (("create",), dict(TYPE="v5litepod-64"), "tpu-vm create loop --zone=us-west4-a"),
        (("create",), dict(TYPE="v5p-128", SLICES="2"), "queued-resources create loop"),
        (("run", "python", "-m", "m"), {}, "--worker=all --command=cd looped_jax && "),
        (("run", "python"), dict(SLICES="2"), "queued-resources ssh loop"),
        (("install",), {}, "pip install --quiet --constraint constraints.txt --editable '.[tpu]'"),
        (("delete",), {}, "tpu-vm delete loop"),
    ],
)
def test_each_step_is_a_command_that_is_printed(
    arguments: tuple[str, ...], environment: dict[str, str], printed: str
) -> None:
    done = run(*arguments, **WHERE, **environment)
    assert done.returncode == 0, done.stderr
    assert printed in done.stdout
    assert done.stdout.startswith("gcloud compute tpus ")


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        ((), {}, "A Cloud TPU from nothing to a run"),
        (("create",), {}, "set NAME"),
        (("create",), WHERE, "set TYPE"),
        (("start",), WHERE, "start is not one of create, install, run, delete"),
    ],
)
def test_what_is_missing_is_said(
    arguments: tuple[str, ...], environment: dict[str, Any], message: str
) -> None:
    done = run(*arguments, **environment)
    assert done.returncode == 2
    assert message in done.stderr


def test_scripts_are_valid_shell() -> None:
    for script in (ROOT / "launch").glob("*.sh"):
        subprocess.run(["sh", "-n", str(script)], check=True)
