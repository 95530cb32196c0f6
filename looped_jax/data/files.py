"""Files that are there whole or not at all, and what tells them apart."""

import hashlib
import os
import uuid
from typing import Any

from etils import epath

from looped_jax.storage import buckets
from looped_jax.storage.buckets import in_bucket, put


def write_whole(path: epath.Path, content: str | bytes) -> None:
    """Writes a file so that a kill at any moment leaves the old content or the new one.

    It is made as NAME.tmp beside the file first, but in a bucket, which replaces objects whole.
    OSError if it cannot be written.
    """
    if in_bucket(path):
        put(path, content.encode() if isinstance(content, str) else content)
        return
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def write_once(path: epath.Path, content: str | bytes) -> None:
    """As write_whole, also where several processes may be writing the same content at a time."""
    own = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    write_whole(own, content)
    own.replace(path)


def sha256(path: epath.Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def identity(path: epath.Path) -> dict[str, Any]:
    """Name, size and SHA-256 of a file, for records of what was read."""
    return {"file": path.name, "bytes": path.stat().length, "sha256": sha256(path)}


def sizes_in(folder: epath.Path) -> dict[str, int]:
    """Name -> bytes of the files of a folder."""
    if in_bucket(folder):
        return buckets.sizes_in(folder)
    return {p.name: p.stat().length for p in folder.iterdir() if p.exists() and not p.is_dir()}
