"""Eight CPU devices to lay meshes over, and a compilation cache shared by all tests."""

import os
import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[1]
CACHE = str(ROOT / ".jax_cache")

# Before JAX is imported; subprocesses that tests start inherit the cache but not the devices.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_COMPILATION_CACHE_DIR"] = CACHE
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"

import jax

jax.config.update("jax_num_cpu_devices", 8)

import subprocess
import sys
from collections.abc import Callable

import pytest


@pytest.fixture
def run_module() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs `python -m MODULE ARGUMENTS…` from the project root as a user would."""

    def run(module: str, *arguments: str, **kwargs: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", module, *arguments]
        return subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=600, **kwargs
        )

    return run


@pytest.fixture
def fails_in_one_line(
    run_module: Callable[..., subprocess.CompletedProcess[str]],
) -> Callable[..., str]:
    """Runs a module that must fail as a user error; returns its one line on stderr."""

    def run(module: str, *arguments: str, code: int = 2, **kwargs: object) -> str:
        done = run_module(module, *arguments, **kwargs)
        lines = done.stderr.strip().splitlines()
        assert done.returncode == code, (done.returncode, done.stderr)
        assert "Traceback" not in done.stderr
        assert len(lines) == 1, done.stderr
        assert done.stdout == ""
        return lines[0]

    return run
