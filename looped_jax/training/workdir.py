"""A run's folder: one config owns it, and one run at a time writes in it."""

import contextlib
import datetime
import json
import os
import socket
from collections.abc import Iterator
from typing import Any

import filelock
from etils import epath
from ml_collections import ConfigDict

from looped_jax import config as config_lib
from looped_jax.data.files import write_whole
from looped_jax.errors import UserError
from looped_jax.parallel import distributed
from looped_jax.training.checkpoint import saved_steps
from looped_jax.training.identity import measured_on, read_run_file
from looped_jax.training.metrics_file import read_metrics

# The lock itself, and who holds it. The operating system releases it with the process, however that
# ends; the file stays, and means nothing by itself.
LOCK, HOLDER = ".lock", ".lock.json"


def in_use(workdir: epath.Path) -> bool:
    """Whether a process trains in it now, on this machine."""
    if not (workdir / LOCK).exists():
        return False
    try:
        with filelock.FileLock(workdir / LOCK, timeout=0):
            return False
    except filelock.Timeout:
        return True
    except OSError:  # A folder that only others may write in.
        return False


@contextlib.contextmanager
def locked(workdir: epath.Path) -> Iterator[None]:
    """Holds the only right to write in a workdir, made if it is not there; several processes of a
    run hold it together. UserError, which says who holds it, if another run does."""
    lock = filelock.FileLock(workdir / LOCK)

    def acquire() -> None:
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
            holder = {"host": socket.gethostname(), "process": os.getpid(), "since": _now()}
            write_whole(workdir / HOLDER, json.dumps(holder) + "\n")
        except filelock.Timeout as error:
            raise UserError(
                f"workdir {workdir} is in use: {_holder(workdir)} trains in it; wait for its end, "
                "or choose another --workdir"
            ) from error
        except (OSError, NotImplementedError) as error:
            raise UserError(f"cannot write in workdir {workdir}: {error}") from error

    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"workdir {workdir} exists and is not a run; choose another --workdir")
    made = not workdir.exists()
    distributed.first_does(acquire)
    try:
        yield
    finally:
        if lock.is_locked:
            (workdir / HOLDER).unlink(missing_ok=True)
            lock.release()
            if not (workdir / "config.json").exists():  # Nothing came of it.
                (workdir / LOCK).unlink(missing_ok=True)
                _remove_if_empty(workdir / "checkpoints")
                if made:
                    _remove_if_empty(workdir)


def _remove_if_empty(folder: epath.Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _holder(workdir: epath.Path) -> str:
    try:
        known = json.loads((workdir / HOLDER).read_text())
        return f"process {known['process']} on {known['host']}, since {known['since']},"
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        return "another process"


def check_owner(config: ConfigDict, workdir: epath.Path) -> None:
    """UserError if the workdir belongs to another config or to another use; nothing is written. A
    start that came to nothing owns nothing."""
    distributed.first_does(lambda: _check_owner(config, workdir))


def claim_workdir(config: ConfigDict, workdir: epath.Path) -> None:
    """Writes config.json, also again with what a start may change: when all checks of a run have
    passed, check_owner among them."""
    distributed.first_does(lambda: _write(config, workdir))


def check_same_held_out(workdir: epath.Path, held_out: dict[str, Any]) -> None:
    """UserError if a run has been evaluated, and on other rows than it would be from now on."""
    known = measured_on(read_run_file(workdir))
    if not any(name.startswith("eval/") for line in read_metrics(workdir) for name in line):
        return
    for name, identity in held_out.items():
        if known.get(name, identity) != identity:
            raise UserError(
                f"{name} is not evaluated on what workdir {workdir} was evaluated on: the held-out "
                "rows at config.data.path differ; give the path of those, or choose another "
                "--workdir"
            )


def _check_owner(config: ConfigDict, workdir: epath.Path) -> None:
    path = workdir / "config.json"
    if path.exists():
        if not _has_begun(workdir):
            return
        there = config_lib.read_config(path)
        if differences := config_lib.differences(config, there):
            raise UserError(
                f"workdir {workdir} holds a run of another config ({'; '.join(differences)}); "
                f"choose another --workdir{_hint(config, there, workdir)}"
            )
        return
    if workdir.exists() and not (workdir.is_dir() and _unclaimed(workdir)):
        raise UserError(f"workdir {workdir} exists and is not a run; choose another --workdir")


def _has_begun(workdir: epath.Path) -> bool:
    """Whether a run, or one of its variants, has come to anything."""
    folders = [workdir, *(path for path in workdir.iterdir() if path.is_dir())]
    files = (folder / "metrics.jsonl" for folder in folders)
    return any(map(saved_steps, folders)) or any(f.exists() and f.stat().length for f in files)


def _hint(config: ConfigDict, there: ConfigDict, workdir: epath.Path) -> str:
    """How to have a run with another number of steps, where nothing else differs."""
    steps = saved_steps(workdir)
    if config_lib.differing_keys(config, there) != ["train.steps"] or not steps:
        return ""
    return (
        " (the learning rate follows from the number of steps): there, with "
        f"--config.train.start_from={workdir / 'checkpoints' / str(steps[-1])}, it goes on from "
        f"step {steps[-1]}"
    )


def _write(config: ConfigDict, workdir: epath.Path) -> None:
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        write_whole(workdir / "config.json", config_lib.to_json(config))
    except OSError as error:
        raise UserError(f"cannot write in workdir {workdir}: {error.strerror}") from error


def _unclaimed(workdir: epath.Path) -> bool:
    # A run killed while it claimed the workdir leaves at most these.
    own = {LOCK, HOLDER, f"{HOLDER}.tmp", "config.json.tmp"}
    return all(path.name in own for path in workdir.iterdir())
