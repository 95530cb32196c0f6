"""A run's folder: one config owns it, and one run at a time writes in it."""

import contextlib
import datetime
import json
import os
import socket
import sys
from collections.abc import Callable, Iterator
from typing import Any

import filelock
from etils import epath
from ml_collections import ConfigDict

from looped_jax import config as config_lib
from looped_jax.config import cli
from looped_jax.data.files import write_whole
from looped_jax.errors import UserError
from looped_jax.parallel import distributed
from looped_jax.storage import lease
from looped_jax.storage.buckets import in_bucket
from looped_jax.training.checkpoint import saved_steps
from looped_jax.training.identity import measured_on, read_run_file
from looped_jax.training.metrics_file import read_metrics

# The lock itself, and who holds it. The operating system releases it with the process, however that
# ends; the file stays, and means nothing by itself.
LOCK, HOLDER = ".lock", ".lock.json"


def in_use(workdir: epath.Path) -> bool:
    """Whether a process trains in it now: on this machine, or, of a bucket, anywhere."""
    if in_bucket(workdir):
        return lease.is_alive(workdir / HOLDER)
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
def locked(workdir: epath.Path) -> Iterator[Callable[[], None]]:
    """Holds the only right to write in a workdir, made if it is not there; several processes of a
    run hold it together. UserError, which says who holds it, if another run does.

    What it gives is to be called before each step; where the right was lost, which on a disk cannot
    be, the process ends there, and nothing more is written.
    """
    if not in_bucket(workdir) and workdir.exists() and not workdir.is_dir():
        raise UserError(f"workdir {workdir} exists and is not a run; choose another --workdir")
    known = {"host": socket.gethostname(), "process": os.getpid(), "since": _now()}
    on_disk = filelock.FileLock("" if in_bucket(workdir) else workdir / LOCK)
    in_store = lease.Lease(workdir / HOLDER, known, cli.end_at_once)

    def acquire() -> None:
        try:
            if in_bucket(workdir):
                in_store.acquire(lambda said: print(said, file=sys.stderr, flush=True))
                return
            workdir.mkdir(parents=True, exist_ok=True)
            on_disk.acquire(timeout=0)
            write_whole(workdir / HOLDER, json.dumps(known) + "\n")
        except (filelock.Timeout, lease.Held) as error:
            raise UserError(
                f"workdir {workdir} is in use: {_holder(workdir)} trains in it; wait for its end, "
                "or choose another --workdir"
            ) from error
        except (OSError, NotImplementedError) as error:
            raise UserError(f"cannot write in workdir {workdir}: {error}") from error

    made = not workdir.exists()
    distributed.first_does(acquire)
    try:
        yield in_store.check
    finally:
        if in_store.is_held:
            in_store.release()
        if on_disk.is_locked:
            (workdir / HOLDER).unlink(missing_ok=True)
            on_disk.release()
            if not (workdir / "config.json").exists():  # Nothing came of it.
                (workdir / LOCK).unlink(missing_ok=True)
                _remove_if_empty(workdir / "checkpoints")
                if made:
                    _remove_if_empty(workdir)


def _remove_if_empty(folder: epath.Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def check_can_hold(workdir: epath.Path, config: ConfigDict) -> None:
    """UserError if a workdir is in a bucket, and something of the run cannot be."""
    if not in_bucket(workdir):
        return
    if own_files := [name for name in config.train.log_to if name != "tensorboard"]:
        raise UserError(
            f"config.train.log_to: {' and '.join(own_files)} keeps files of its own in the workdir,"
            f" which cannot be in a bucket ({workdir}): leave it out (metrics.jsonl has everything "
            "there), or choose a --workdir on a disk"
        )
    if distributed.several() and str(workdir).startswith("s3://"):
        raise UserError(
            f"several processes cannot write one checkpoint to {workdir}: only to gs:// and to a "
            "disk that all of them share; choose such a --workdir"
        )


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _holder(workdir: epath.Path) -> str:
    try:
        return lease.describe(lease.read(workdir / HOLDER))
    except OSError:
        return lease.describe(None)


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
                "rows at config.data.path, or of config.data.sources, differ; give the path of "
                "those, or choose another --workdir"
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
    """How to have a run with another number of steps, or other rates of its sources from here on,
    where nothing else differs."""
    steps = [step for step in saved_steps(workdir) if step < config.train.steps]
    differing = config_lib.differing_keys(config, there)
    if not differing or not {*differing} <= {"train.steps", "data.rates"} or not steps:
        return ""
    why = ""
    if "train.steps" in differing:
        why = " (the learning rate follows from the number of steps)"
    rates = " at these rates, and repeats no row" if "data.rates" in differing else ""
    return (
        f"{why}: there, with "
        f"--config.train.start_from={workdir / 'checkpoints' / str(steps[-1])}, it goes on from "
        f"step {steps[-1]}{rates}"
    )


def _write(config: ConfigDict, workdir: epath.Path) -> None:
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        write_whole(workdir / "config.json", config_lib.to_json(config))
    except OSError as error:
        raise UserError(f"cannot write in workdir {workdir}: {error.strerror}") from error


def _unclaimed(workdir: epath.Path) -> bool:
    # A run killed before it claimed the workdir leaves at most these, in its folder or in that of a
    # variant, and folders with nothing in them.
    own = {LOCK, HOLDER, f"{HOLDER}.tmp", "config.json.tmp"}
    return all(
        _unclaimed(path) if path.is_dir() else path.name in own for path in workdir.iterdir()
    )
