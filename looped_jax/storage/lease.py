"""The only right to write in a folder of a bucket, where no operating system guards one.

Its holder writes an object anew every few seconds. A process that is killed stops doing so, and
whoever finds the object unchanged for long enough takes the right over; no clocks are compared. A
holder that finds another's name in it has been taken for dead (it was cut off from the bucket,
or slept) and ends at once.
"""

import contextlib
import json
import os
import pathlib
import secrets
import threading
import time
from collections.abc import Callable
from typing import Any

from etils import epath

from looped_jax.storage import buckets

# The holder writes so often, and is taken for dead when it has not for so long.
BEAT_SECONDS = 10.0
DEAD_SECONDS = 45.0


class Held(Exception):
    """The right is another's, who is alive."""


class Lease:
    """The right to write in the folder of ``path``, an object of its own."""

    def __init__(self, path: epath.Path, known: dict[str, Any], on_loss: Callable[[str], None]):
        """``known``: what others are told of the holder, with `host` and `process`. ``on_loss`` is
        called, with the reason, in whatever thread finds that the right was lost; nothing may be
        written any more."""
        self._on_loss = on_loss
        self._renewed = _now()
        self._path = path
        self._known = {**known, "machine": _machine(), "token": secrets.token_hex(8)}
        self._beat = 0
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._lost = False

    @property
    def is_held(self) -> bool:
        return self._thread is not None

    def acquire(self, wait: Callable[[str], None]) -> None:
        """Held if a living process has it; OSError if the bucket cannot be written in. ``wait`` is
        told if it has to be seen first whether one lives."""
        there = self._read()
        if there is not None and not _is_gone(there):
            wait(f"{self._path} names a holder; looking for {DEAD_SECONDS:.0f} s if it lives")
            self._watch(there)
        try:
            put = buckets.put_new if there is None else buckets.put
            put(self._path, self._content())
        except FileExistsError:
            raise Held from None
        # Of two who come at once, where the store does not know a first one, the last has it.
        time.sleep(min(1.0, BEAT_SECONDS / 5))
        if (self._read() or {}).get("token") != self._known["token"]:
            raise Held
        self._renewed = _now()
        self._thread = threading.Thread(target=self._keep, daemon=True)
        self._thread.start()

    def _watch(self, there: dict[str, Any]) -> None:
        until = time.monotonic() + DEAD_SECONDS
        while time.monotonic() < until:
            time.sleep(min(1.0, BEAT_SECONDS / 5))
            now = self._read()
            if now is None:
                return
            if now != there:
                raise Held

    def _keep(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            try:
                if not self._is_ours():
                    return
                buckets.put(self._path, self._content())
                self._renewed = _now()
            except OSError as error:
                if _now() - self._renewed > DEAD_SECONDS / 2:
                    self._lose(f"{self._path} could not be renewed ({error.strerror or error})")
                    return

    def check(self) -> None:
        """To be called before something is written: where the last renewal was long ago (a machine
        that slept, a process that was halted) it is looked first whose the right is now."""
        if self._thread is not None and _now() - self._renewed > DEAD_SECONDS / 2:
            self._is_ours()

    def _is_ours(self) -> bool:
        there = self._read()
        if (there or {}).get("token") == self._known["token"]:
            return True
        self._lose(f"{describe(there)} has taken {self._path} over")
        return False

    def _lose(self, why: str) -> None:
        self._lost = True
        self._on_loss(f"{why}; stopped, so that two do not write in one folder")

    def release(self) -> None:
        """Gives it back."""
        if self._thread is None:
            return
        self._ended.set()
        self._thread.join()
        self._thread = None
        if not self._lost:
            with contextlib.suppress(OSError):  # Left, it is that of a process which has ended.
                self._path.unlink(missing_ok=True)

    def _content(self) -> bytes:
        self._beat += 1
        return (json.dumps({**self._known, "beat": self._beat}) + "\n").encode()

    def _read(self) -> dict[str, Any] | None:
        return read(self._path)


def read(path: epath.Path) -> dict[str, Any] | None:
    """What a lease says of its holder; None if there is none, or it was cut off."""
    try:
        content = json.loads(buckets.get(path) if buckets.in_bucket(path) else path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return content if isinstance(content, dict) else None


def is_alive(path: epath.Path) -> bool:
    """Whether it was renewed of late, by the clocks of the store and of this machine."""
    age = buckets.age(path)
    return age is not None and age < 4 * DEAD_SECONDS


def describe(known: dict[str, Any] | None) -> str:
    """A holder in words."""
    if not known or not {"process", "host", "since"} <= known.keys():
        return "another process"
    return f"process {known['process']} on {known['host']}, since {known['since']},"


def _is_gone(known: dict[str, Any]) -> bool:
    """Whether it is a process of this machine that has ended."""
    here = known.get("machine") == _machine() != ""
    if not here or not isinstance(known.get("process"), int):
        return False
    try:
        os.kill(known["process"], 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def _machine() -> str:
    """This machine since it was started, and the space in which its processes have numbers (a
    container has its own); empty where that is not known."""
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _now() -> float:
    """Seconds of a clock that goes on while a machine sleeps, where there is one."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
