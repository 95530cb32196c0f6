"""Several processes as one run: joining them, and what one of them does for all.

The same command is started on every host. The environment says who is who:
  a coordinator   JAX_COORDINATOR_ADDRESS=host:port, JAX_NUM_PROCESSES, JAX_PROCESS_ID
  Slurm           SLURM_NTASKS > 1 (srun starts one process per task)
  TPU VMs         found by JAX through the machine's metadata, also across slices
Without any of these there is one process.
"""

import atexit
import contextlib
import importlib.util
import os
import pathlib
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from looped_jax.config import cli
from looped_jax.errors import RunError, UserError

T = TypeVar("T")

# When a process has not been heard of for so long, JAX ends the others and says that it is gone.
HEARTBEAT_SECONDS = 30
# Of a process that ends with an error: how long the others have to end with words of their own, and
# how long the first one, whom they ask, waits for their ends.
_OWN_WORDS_SECONDS, _LAST_WORDS_SECONDS = 1.0, 4.0
_ASKED_SECONDS = 0.5
_FAILED, _ENDED = "looped_jax/failed", "looped_jax/ended"
_ending = threading.Event()  # This process, with words of its own.
_COORDINATOR = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


def join() -> None:
    """Joins the processes of this run, if there are several; to be called before anything else
    uses JAX. UserError if the environment says half of what is needed; RunError if they do not
    find each other, which may be because one of them is still being started again."""
    given = {name: os.environ[name] for name in _COORDINATOR if os.environ.get(name)}
    arguments: dict[str, object] = {}
    if given:
        if missing := [name for name in _COORDINATOR if name not in given]:
            raise UserError(f"{', '.join(given)} set, but not {', '.join(missing)}")
        address, *numbers = (given[name] for name in _COORDINATOR)
        if not all(number.isdigit() for number in numbers):
            raise UserError(f"{' and '.join(_COORDINATOR[1:])} must be numbers, not {numbers}")
        processes, process = map(int, numbers)
        if not 0 <= process < processes:
            raise UserError(f"JAX_PROCESS_ID={process} is not in 0 … {processes - 1}")
        arguments = dict(coordinator_address=address, num_processes=processes, process_id=process)
    elif int(os.environ.get("SLURM_NTASKS") or 1) <= 1 and not _on_tpu():
        return
    try:
        jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT_SECONDS, **arguments)  # type: ignore[arg-type]
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise RunError(f"the processes of this run did not find each other ({reason})") from error
    if several():
        cli.before_a_bad_end(_tell_others)
        listener = threading.Thread(target=_end_with_others, daemon=True)
        listener.start()
        # Before JAX's own, which ends the connection.
        atexit.register(listener.join)
        atexit.register(_ending.set)  # The later one is called first.


def _tell_others(message: str) -> None:
    """Called by a process that is about to end with an error: the others would wait for it, and
    hear of its silence only."""
    _ending.set()
    client = _client()
    with contextlib.suppress(Exception):  # Another was first, or the service has gone already.
        client.key_value_set(_FAILED, f"process {jax.process_index()} did: {message}")
    with contextlib.suppress(Exception):
        client.key_value_increment(_ENDED, 1)
        # The first process is whom all ask: it stays until they have heard.
        until = time.monotonic() + (_LAST_WORDS_SECONDS if jax.process_index() == 0 else 0)
        while time.monotonic() < until:
            if client.key_value_increment(_ENDED, 0) >= jax.process_count():
                return
            time.sleep(0.1)


def _end_with_others() -> None:
    """In a thread: ends this process when another one has told why it ends."""
    client, said = _client(), ""
    while not said:
        # Asked again and again: a thread that waits in the library would be torn down with it.
        if _ending.wait(_ASKED_SECONDS):
            return
        with contextlib.suppress(Exception):  # Nothing was told, or the run is over.
            said = client.key_value_try_get(_FAILED)
    # It may be about to end by itself, with words of its own.
    if _ending.wait(_OWN_WORDS_SECONDS):
        return
    with contextlib.suppress(Exception):
        client.key_value_increment(_ENDED, 1)
    print(f"process {jax.process_index()}: stopped, as {said}", file=sys.stderr, flush=True)
    os._exit(1)


def _client() -> Any:
    # JAX has no public name for the store of keys that its processes share.
    from jax._src.distributed import global_state

    return global_state.client


def _on_tpu() -> bool:
    devices = (*pathlib.Path("/dev").glob("accel*"), *pathlib.Path("/dev/vfio").glob("[0-9]*"))
    return bool(devices) and importlib.util.find_spec("libtpu") is not None


def several() -> bool:
    """Whether this process is one of several. Does not start JAX's backend."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def is_first() -> bool:
    """Whether this process prints and writes."""
    return not several() or jax.process_index() == 0


def first_does(action: Callable[[], T]) -> None:
    """Runs ``action`` in the first process while the others wait; if it raises there, they raise
    too: UserError for UserError, RunError for anything else."""
    if not several():
        action()
        return
    failed: Exception | None = None
    if is_first():
        try:
            action()
        except Exception as error:  # Whatever it is, the others must not wait for its end.
            failed = error
    kind = 0 if failed is None else 1 if isinstance(failed, UserError) else 2
    kind = int(multihost_utils.broadcast_one_to_all(jax.numpy.asarray(kind)))
    if failed is not None:
        raise failed
    if kind:
        raise (UserError, RunError)[kind - 1]("the first process could not go on, see there")


def from_first(array: np.ndarray) -> np.ndarray:
    """The first process's array, of the same shape in each."""
    return np.asarray(multihost_utils.broadcast_one_to_all(array)) if several() else array


def stop_at(number: int) -> bool:
    """Whether all processes stop at this number because one of them was told to (SIGTERM, or a
    TPU's maintenance notice): they agree on one. To be asked with 1, 2, 3, … by each of several."""
    return bool(multihost_utils.reached_preemption_sync_point(number))
