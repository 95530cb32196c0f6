"""What tests of the launch scripts share: a cloud on this machine."""

import json
import os
import pathlib
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import fake_cloud
from conftest import ROOT

LAUNCH = ROOT / "launch"
WHERE = dict(NAME="loop", ZONE="us-west4-a")


def wait_until(true: Callable[[], Any], seconds: float = 60) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := true()):
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.05)
    return value


def write_script(path: pathlib.Path, text: str) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


class Cloud:
    """tests/fake_cloud.py on the PATH as gcloud, and launch/tpu_vm.sh with it."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        fake = [sys.executable, str(ROOT / "tests" / "fake_cloud.py")]
        write_script(folder / "bin" / "gcloud", f'#!/bin/sh\nexec {shlex.join(fake)} "$@"\n')
        path = f"{folder / 'bin'}:{os.environ['PATH']}"
        mine = dict(PATH=path, FAKE_CLOUD=str(folder), WAIT="0", POLL="0", TYPE="v5litepod-16")
        self.environment = {**os.environ, **WHERE, **mine, "PYTHONPATH": "."}

    def start(self, *arguments: str | bytes, **environment: str) -> subprocess.Popen[str]:
        command = [str(LAUNCH / "tpu_vm.sh"), *arguments]
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace")
        return subprocess.Popen(command, env={**self.environment, **environment}, **pipes)

    def __call__(self, *arguments: str | bytes, code: int = 0, **environment: str) -> str:
        process = self.start(*arguments, **environment)
        out, err = process.communicate(timeout=240)
        assert process.returncode == code, (out, err)
        return out + err

    def close(self) -> None:
        if (self.folder / "hosts").exists():
            fake_cloud.lose("GONE", self.folder)

    def host(self, number: int = 0) -> pathlib.Path:
        return self.folder / "hosts" / str(number)

    def calls(self) -> list[list[str]]:
        path = self.folder / "calls"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def verbs(self) -> list[str]:
        """What was asked of gcloud, without looks."""
        verbs = []
        for call in self.calls():
            (command,) = [a for a in call if a.startswith("--command=")] or [""]
            looks = "keep.sh status" in command or call[3] == "describe"
            install = ("install",) if "pip install" in command else ()
            run = ("run",) if "keep.sh start" in command else ()
            if not looks:
                verbs.append("".join(install or run) or call[3])
        return verbs
