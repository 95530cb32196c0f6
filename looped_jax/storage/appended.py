"""Lines added at the end of a file, on a disk or in a bucket."""

import os
import time

from etils import epath

from looped_jax.storage import buckets

# Between what others see of a file in a bucket while it grows: each time it is written whole.
SECONDS = 30.0


class Appended:
    """A text file that grows: on a disk with every `write`, in a bucket, whose objects can only be
    replaced, with `sync`, `close`, and a `write` that comes SECONDS after the last of these.

    OSError from each method if it cannot be written.
    """

    def __init__(self, path: epath.Path):
        """Goes on with what is there."""
        self._path = path
        self._text: str | None = None
        if buckets.in_bucket(path):
            self._text = path.read_text() if path.exists() else ""
            self._written = self._text
            self._at = time.monotonic()
        else:
            self._file = path.open("a")

    def __enter__(self) -> "Appended":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, text: str) -> None:
        """Adds to it."""
        if self._text is None:
            self._file.write(text)
            self._file.flush()
            return
        self._text += text
        if time.monotonic() - self._at > SECONDS:
            self._put()

    def sync(self) -> None:
        """Returns when it is where a loss of power leaves it."""
        if self._text is None:
            os.fsync(self._file.fileno())
        else:
            self._put()

    def close(self) -> None:
        """Ends it."""
        if self._text is None:
            self._file.close()
        else:
            self._put()

    def _put(self) -> None:
        assert self._text is not None
        if self._text != self._written:
            buckets.put(self._path, self._text.encode())
            self._written = self._text
        self._at = time.monotonic()
