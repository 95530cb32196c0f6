"""Copies on this machine of what lies in a bucket.

They are in the folder LOOPED_JAX_CACHE (by default looped_jax in the user's cache folder), each
under the hash of its content, so that they serve every run and never grow old; what no longer fits
on the disk is for the user to remove.
"""

import hashlib
import os
import shutil
import tempfile

import filelock
from etils import epath

from looped_jax.errors import RunError
from looped_jax.storage import buckets

VARIABLE = "LOOPED_JAX_CACHE"


def folder() -> epath.Path:
    """Where the copies are."""
    default = os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "looped_jax")
    return epath.Path(os.path.expanduser(os.environ.get(VARIABLE) or default))


def place_of(kind: str, address: epath.Path) -> epath.Path:
    """The folder here of what is made for one in a bucket."""
    return folder() / kind / hashlib.sha256(str(address).encode()).hexdigest()[:16]


def local_copy(path: epath.Path, size: int, sha256: str) -> epath.Path:
    """A file of known content, on a disk: itself, or its copy, made now if there is none.

    Processes that want it at once wait for one of them. RunError if it is not of this content, or
    there is no room.
    """
    if not buckets.in_bucket(path):
        return path
    here = folder() / "files"
    copy = here / f"{sha256}{path.suffix}"
    if copy.exists():
        return copy
    try:
        here.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(f"{copy}.lock"):
            if not copy.exists():
                _fetch(path, copy, size, sha256)
    except buckets.BucketError:
        raise
    except OSError as error:
        raise RunError(
            f"{path} cannot be copied to {here} ({error.strerror or error}); make room there, or "
            f"name another folder in {VARIABLE}, and start the same command again"
        ) from error
    return copy


def _fetch(path: epath.Path, copy: epath.Path, size: int, sha256: str) -> None:
    partial = copy.with_name(f"{copy.name}.tmp")
    if shutil.disk_usage(copy.parent).free < size:
        raise OSError(28, f"it has {size:,} bytes, more than are free")
    buckets.download(path, partial)
    with partial.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != sha256:
        partial.unlink()
        raise RunError(
            f"{path} is not of the content that its manifest says (sha256 {sha256[:12]}…): it was "
            "changed or damaged; prepare the data again or copy it there"
        )
    partial.replace(copy)


_FOLDERS: dict[str, tempfile.TemporaryDirectory[str]] = {}


def local_folder(path: epath.Path, marker: epath.Path) -> epath.Path:
    """A folder on a disk: itself, or a copy of all in it, for as long as this process lives.

    ``marker``: an object that is written anew whenever the folder is, after all else.
    """
    if not buckets.in_bucket(path):
        return path
    name = f"{path} {buckets.version(marker)}"
    if name not in _FOLDERS:
        folder().mkdir(parents=True, exist_ok=True)
        copies = tempfile.TemporaryDirectory(prefix="read_", dir=folder())
        _download_all(path, epath.Path(copies.name))
        _FOLDERS[name] = copies
    return epath.Path(_FOLDERS[name].name)


def _download_all(path: epath.Path, target: epath.Path) -> None:
    for entry in path.iterdir():
        if entry.is_dir():
            (target / entry.name).mkdir()
            _download_all(entry, target / entry.name)
        else:
            buckets.download(entry, target / entry.name)
