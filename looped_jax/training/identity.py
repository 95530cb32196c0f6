"""What made a run: `run.json` in its folder, beside config.json.

Code version, numerics format, library versions, devices, mesh, command, times; one entry for each
time that the run was started, the newest in front.
"""

import datetime
import functools
import importlib.metadata
import json
import pathlib
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath
from jax.sharding import Mesh

from looped_jax.config import PROJECT_ROOT
from looped_jax.config.places import PACKAGE
from looped_jax.data.files import write_whole
from looped_jax.models.format import MODEL_FORMAT
from looped_jax.parallel.numerics import matmul_precision

NAME = "run.json"
LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


@functools.cache
def code_version() -> dict[str, Any]:
    """Of this package: its version and, where it is a git checkout, the commit and whether files
    that git knows were changed since; None where that cannot be told."""

    def git(*arguments: str) -> str | None:
        command = ["git", "-C", str(PROJECT_ROOT), *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=30)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # An installed package may lie inside some other project's checkout.
    own = git("rev-parse", "--show-toplevel")
    is_checkout = own is not None and pathlib.Path(own).resolve() == PROJECT_ROOT
    changes = git("status", "--porcelain", "--untracked-files=no") if is_checkout else None
    return {
        "version": _version("looped_jax"),
        "commit": git("rev-parse", "HEAD") if is_checkout else None,
        "changed": None if changes is None else bool(changes),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def describe(mesh: Mesh, dtype: Any, data: str, held_out: dict[str, Any]) -> dict[str, Any]:
    """What runs now, on what. ``data`` identifies what it is trained on by its content (RowSource),
    ``held_out`` what each of its evaluations is measured on (data/pipeline.py's Sample)."""
    return {
        "code": code_version(),
        "numerics_format": MODEL_FORMAT,
        "matmul_precision": matmul_precision(dtype),
        "versions": {
            "python": platform.python_version(),
            **{package: _version(package) for package in LIBRARIES},
        },
        "devices": {
            "kind": mesh.devices.flat[0].device_kind,
            "count": mesh.size,
            "processes": jax.process_count(),
        },
        "mesh": dict(mesh.shape),
        "command": command(),
        "data": data,
        "held_out": held_out,
        "started": _now(),
        "ended": None,
    }


def command() -> str:
    """That of this process, to be given again: a module of the package by its name, any other
    program by its file's."""
    program = pathlib.Path(sys.argv[0])
    words = [program.name]
    if program.resolve().is_relative_to(PACKAGE):
        parts = program.resolve().relative_to(PROJECT_ROOT).with_suffix("").parts
        words = ["python", "-m", ".".join(part for part in parts if part != "__main__")]
    return shlex.join([*words, *sys.argv[1:]])


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def measured_on(known: Mapping[str, Any] | None) -> dict[str, Any]:
    """Of a run.json: evaluation -> what it was measured on (data/pipeline.py's Sample); empty where
    that was not recorded."""
    found: dict[str, Any] = (known or {}).get("held_out") or {}
    return found


def data_identity(known: Mapping[str, Any] | None) -> str | None:
    """Of a run.json: equal for runs that were trained on the same data and evaluated on the same,
    by content; None where that was not recorded."""
    if not known or "data" not in known:
        return None
    held_out = {name: of.get("data") for name, of in measured_on(known).items()}
    return json.dumps([known["data"], held_out], sort_keys=True)


class RunFile:
    """A run's `run.json`; written by one process."""

    def __init__(self, workdir: epath.Path, start: dict[str, Any], step: int):
        """Adds this start, which goes on from ``step``."""
        self._path = workdir / NAME
        earlier = read_run_file(workdir)
        before = [] if earlier is None else [earlier, *earlier.pop("earlier", [])]
        self._content = {**start, "from_step": step, "to_step": step, "earlier": before}
        self._write()

    def ended(self, step: int) -> None:
        """Notes when, and after which step."""
        self._content.update(ended=_now(), to_step=step)
        self._write()

    def _write(self) -> None:
        write_whole(self._path, json.dumps(self._content, indent=1) + "\n")


def read_run_file(workdir: epath.Path) -> dict[str, Any] | None:
    """What is known of a run's last start; None if nothing is."""
    path = workdir / NAME
    try:
        content = json.loads(path.read_text()) if path.exists() else None
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None
