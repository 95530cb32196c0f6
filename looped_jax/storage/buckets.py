"""Buckets: paths gs://… and s3://… through fsspec, by gcsfs and s3fs (extras gcs and s3).

Importing this makes every epath.Path of such an address a BucketPath. A bucket is not a disk, and
what follows from that is kept here and in the modules beside: there are no folders (one is there
once something is in it), an object can only be replaced whole, which is atomic, and any request can
fail. The libraries try again what may pass by itself; whatever else they raise is a BucketError.

Credentials and addresses are theirs, too: for gs:// Google's application default credentials, for
s3:// the environment (AWS_ACCESS_KEY_ID, AWS_PROFILE, AWS_ENDPOINT_URL, …) and ~/.aws.
"""

import contextlib
import datetime
import errno
import io
import logging
import os
from collections.abc import Callable, Iterator
from typing import Any

from etils import epath
from etils.epath import backend, gpath

from looped_jax.errors import UserError, from_extra

_EXTRAS = {"gs": "gcs", "s3": "s3"}
_CHUNK = 1 << 20  # Bytes read at a time; the libraries fetch more ahead.


class BucketError(OSError):
    """A request to a bucket that failed, and was not worth another try."""

    def __init__(self, message: str):
        super().__init__(errno.EIO, message)


@contextlib.contextmanager
def _as_bucket_error(where: str) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError) as error:
        # The libraries' have no number, nor a name.
        number = errno.EEXIST if isinstance(error, FileExistsError) else errno.ENOENT
        reason = error.strerror or " ".join(str(error).split()) or os.strerror(number)
        raise type(error)(error.errno or number, reason, where) from error
    except (ValueError, TypeError, NotImplementedError, UserError):
        raise
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise BucketError(f"{where}: {reason}") from error


def file_system(path: str) -> Any:
    """The fsspec file system of an address; UserError, which names the extra, without its package.

    It lists anew at each question: other processes write in the same bucket.
    """
    scheme = path.split("://", 1)[0]
    with from_extra(_EXTRAS[scheme], f"{scheme}://"):
        if scheme == "gs":
            # Not what fsspec would choose, which first asks of what kind the bucket is, for nothing
            # that is used here, and asks again with every call where that is not answered.
            from gcsfs.core import GCSFileSystem as FileSystem

            # It warns of each place where it finds no credentials; a request says what is refused.
            logging.getLogger("google.auth").setLevel(logging.ERROR)
        else:
            from s3fs import S3FileSystem as FileSystem
    return FileSystem(use_listings_cache=False)


class _Reader(io.RawIOBase):
    """An object being read, whose every request may fail."""

    def __init__(self, file: Any, where: str):
        self._file, self._where = file, where

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with _as_bucket_error(self._where):
            content = self._file.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def seek(self, offset: int, whence: int = 0) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def close(self) -> None:
        self._file.close()
        super().close()


class _Backend(backend._FileSystemSpecBackend):
    """etils' own for fsspec, with the file systems above, and folders that need not be made."""

    def fs(self, path: Any) -> Any:
        return file_system(os.fspath(path))

    def open(self, path: Any, mode: str) -> Any:
        if "r" not in mode:
            return super().open(path, mode)
        reader = io.BufferedReader(_Reader(super().open(path, "rb"), os.fspath(path)), _CHUNK)
        return reader if "b" in mode else io.TextIOWrapper(reader, "utf-8")

    def listdir(self, path: Any) -> list[str]:
        names = super().listdir(path)
        return [name for name in names if name]  # "": some programs write an object for a folder.

    def makedirs(self, path: Any, *, exist_ok: bool = False, mode: int | None = None) -> None:
        """Nothing to make. (s3fs would make the bucket, if it is spelt wrong.)"""
        if not exist_ok and self.exists(path):
            raise FileExistsError(errno.EEXIST, "exists already", os.fspath(path))

    mkdir = makedirs


def _reporting(method: Callable[..., Any]) -> Callable[..., Any]:
    def reports(self: _Backend, path: Any, *arguments: Any, **options: Any) -> Any:
        with _as_bucket_error(os.fspath(path)):
            return method(self, path, *arguments, **options)

    return reports


_ASKING = ("exists", "glob", "isdir", "listdir", "open", "stat")
_CHANGING = ("copy", "remove", "rename", "replace", "rmtree")
for _name in (*_ASKING, *_CHANGING):
    setattr(_Backend, _name, _reporting(getattr(_Backend, _name)))

_BACKEND = _Backend()


@epath.register_path_cls(("gs://", "s3://"))
class BucketPath(gpath.PosixGPath):
    """A path in a bucket. etils alone would take TensorFlow's file system where it is installed."""

    @property
    def _backend(self) -> backend.Backend:
        return _BACKEND

    def resolve(self, strict: bool = False) -> "BucketPath":
        return self


def in_bucket(path: Any) -> bool:
    """Whether it is an address in a bucket, and not on a disk."""
    return os.fspath(path).startswith(("gs://", "s3://"))


def get(path: epath.Path) -> bytes:
    """An object by one request: a file that is opened fails where it is replaced meanwhile."""
    address = os.fspath(path)
    with _as_bucket_error(address):
        return bytes(file_system(address).cat_file(address))


def put(path: epath.Path, content: bytes) -> None:
    """Writes an object whole; a kill at any moment leaves the old one or the new one."""
    address = os.fspath(path)
    with _as_bucket_error(address):
        file_system(address).pipe_file(address, content)


def put_new(path: epath.Path, content: bytes) -> None:
    """Writes an object that is not there; FileExistsError if it is, by the bucket's own word."""
    address = os.fspath(path)
    with _as_bucket_error(address):
        file_system(address).pipe_file(address, content, mode="create")


def version(path: epath.Path) -> str:
    """Another text each time that an object was written anew."""
    address = os.fspath(path)
    with _as_bucket_error(address):
        known = file_system(address).info(address)
    return f"{known.get('generation') or ''}{known.get('LastModified') or ''}{known.get('ETag')}"


def age(path: epath.Path) -> float | None:
    """Seconds since an object was written, by its store's clock and ours; None if there is none."""
    address = os.fspath(path)
    with _as_bucket_error(address):
        try:
            written = file_system(address).modified(address)
        except FileNotFoundError:
            return None
    return (datetime.datetime.now(datetime.UTC) - written).total_seconds()


def upload(source: epath.Path, path: epath.Path) -> None:
    """Copies a file from a disk."""
    address = os.fspath(path)
    with _as_bucket_error(address):
        file_system(address).put_file(os.fspath(source), address)


def download(path: epath.Path, target: epath.Path) -> None:
    """Copies an object to a disk; what is there after an error is not whole."""
    address = os.fspath(path)
    with _as_bucket_error(address):
        file_system(address).get_file(address, os.fspath(target))


def sizes_in(folder: epath.Path) -> dict[str, int]:
    """Name -> bytes of the objects of a folder, in one request for a thousand of them."""
    address = os.fspath(folder)
    with _as_bucket_error(address):
        listed = file_system(address).ls(address, detail=True)
    return {of["name"].rsplit("/", 1)[-1]: of["size"] for of in listed if of["type"] == "file"}
