"""Checkpoints in a bucket that Orbax does not write in (s3://): saved on this disk, then copied."""

import shutil
import threading
from collections.abc import Callable

from etils import epath

from looped_jax.storage import buckets, cache

# What is copied last, and removed first: a checkpoint without it is not complete.
MARKER = "_CHECKPOINT_METADATA"


def needed(directory: epath.Path) -> bool:
    """Whether checkpoints in this folder can only be written and read as copies."""
    return str(directory).startswith("s3://")


class Uploads:
    """Copies checkpoints of the folder ``local``, of which only the newest is needed, to a bucket,
    one at a time and beside the training, and keeps the newest few there."""

    def __init__(self, directory: epath.Path, keep: int):
        self._directory = directory
        self._keep = keep
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self.local = cache.place_of("uploads", directory)
        # Of a process that was killed: what of it was whole is in the bucket, or made again.
        shutil.rmtree(self.local, ignore_errors=True)
        self.local.mkdir(parents=True)

    def start(self, step: int, saved: Callable[[], None]) -> None:
        """Copies a checkpoint once ``saved`` returns; `wait` raises what that raises."""

        def copy() -> None:
            try:
                saved()
                self._copy(step)
            except Exception as error:
                self._error = error

        self._thread = threading.Thread(target=copy)
        self._thread.start()

    def wait(self) -> None:
        """Returns when the checkpoint is in the bucket."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def close(self) -> None:
        """Removes what is on the disk."""
        if self._thread is not None:
            self._thread.join()
        shutil.rmtree(self.local, ignore_errors=True)

    def _copy(self, step: int) -> None:
        source, target = self.local / str(step), self._directory / str(step)
        _upload_all(source, target)
        buckets.upload(source / MARKER, target / MARKER)
        steps = sorted(int(f.name) for f in self._directory.iterdir() if f.name.isdigit())
        for old in steps[: -self._keep]:
            remove(self._directory / str(old))


def remove(checkpoint: epath.Path) -> None:
    """Removes a checkpoint of a bucket so that no moment shows a part of it as complete."""
    (checkpoint / MARKER).unlink(missing_ok=True)
    checkpoint.rmtree(missing_ok=True)


def _upload_all(source: epath.Path, target: epath.Path) -> None:
    for entry in source.iterdir():
        if entry.is_dir():
            _upload_all(entry, target / entry.name)
        elif entry.name != MARKER:
            buckets.upload(entry, target / entry.name)
