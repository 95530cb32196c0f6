"""Jobs on the workers of a Dask cluster, which share a file system with whoever starts them.

A worker that is lost costs what it was doing: its jobs are done again elsewhere, and what they
write is there whole or not at all.
"""

import dataclasses
import functools
import hashlib
import importlib.metadata
import logging
import time
import uuid
from collections.abc import Iterable
from typing import Any

from etils import epath

from looped_jax.config.places import PACKAGE
from looped_jax.data.files import sha256
from looped_jax.data.vocabulary import vocabulary_fingerprint
from looped_jax.data.workers import Job, Workers
from looped_jax.errors import RunError, UserError, from_extra

_SHARE = (
    "config.data.path and --output have to be on a file system that all workers share, with the "
    "same absolute path"
)
_CONNECT_SECONDS = 10
_WORKERLESS_SECONDS = 300
_LOOK_SECONDS = 5


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a worker needs to do the jobs of a preparation as this machine would."""

    claim: epath.Path  # A file of the output folder, and the SHA-256 of what is in it.
    claimed: str
    vocabulary: str  # Its name, and vocabulary_fingerprint.
    fingerprint: str
    versions: tuple[tuple[str, str], ...]  # (package, version)
    sources: tuple[epath.Path, ...]  # A file of each split.
    code: str = dataclasses.field(default_factory=lambda: code_fingerprint())
    # A worker looks once for each command.
    command: str = dataclasses.field(default_factory=lambda: uuid.uuid4().hex)


def code_fingerprint() -> str:
    """A hash of this package's Python files."""
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        digest.update(f"{path.relative_to(PACKAGE)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def unfit(setting: Setting) -> str:
    """Why this process cannot do the jobs; empty if it can."""
    if code_fingerprint() != setting.code:
        return "has another version of looped_jax"
    for package, version in setting.versions:
        try:
            here = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            here = "none"
        if here != version:
            return f"has {package} {here}, not {version}"
    try:
        if vocabulary_fingerprint(setting.vocabulary) != setting.fingerprint:
            return f"has another vocabulary {setting.vocabulary}"
    except UserError as error:
        return f"cannot read the vocabulary ({error})"
    for path in setting.sources:
        if not path.exists():
            return f"cannot see {path}: {_SHARE}"
    try:
        seen = sha256(setting.claim)
    except OSError as error:
        return f"cannot see {setting.claim.parent} ({error.strerror or error}): {_SHARE}"
    if seen != setting.claimed:
        return f"sees another folder {setting.claim.parent}: it is not on a shared file system"
    return ""


_unfit_once = functools.cache(unfit)


@dataclasses.dataclass(frozen=True)
class _Checked:
    """A job on a worker that may have come after all were checked."""

    job: Job
    setting: Setting

    def __call__(self) -> Any:
        if reason := _unfit_once(self.setting):
            from distributed import get_worker

            raise UserError(f"worker {get_worker().address} {reason}")
        return self.job()


def _call(job: Job) -> Any:
    return job()


class Cluster(Workers):
    """The workers of the Dask scheduler at ``address``; UserError if there is none, or a worker
    cannot do the jobs (it is named)."""

    def __init__(self, address: str, setting: Setting):
        with from_extra("dask", f"--scheduler={address}"):
            import dask
            import distributed
        self._address, self._setting = address, setting
        # It warns of lost workers, and of jobs that bring their text: neither is a fault.
        logging.getLogger("distributed").setLevel(logging.CRITICAL)
        dask.config.set({"distributed.admin.large-graph-warning-threshold": "1TB"})
        self._distributed = distributed
        try:
            self._client = distributed.Client(address, timeout=_CONNECT_SECONDS)
        except (OSError, ValueError, TypeError) as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"--scheduler={address}: no Dask scheduler answers there ({reason[:200]}); start "
                "one with `dask scheduler`, and workers with `dask worker ADDRESS`"
            ) from error
        self._capacity, self._looked, self._seen = 0, 0.0, time.monotonic()
        try:
            self._check()
        except BaseException:
            self._client.close()
            raise

    def _check(self) -> None:
        found = self._client.run(unfit, self._setting, on_error="return")
        if not found:
            raise UserError(
                f"--scheduler={self._address}: it has no workers; start some with "
                f"`dask worker {self._address} --nworkers=auto --nthreads=1` where looped_jax is "
                "installed"
            )
        for worker, reason in sorted(found.items()):
            if isinstance(reason, BaseException):
                said = " ".join(f"{type(reason).__name__}: {reason}".split())[:200]
                raise UserError(f"worker {worker} cannot run looped_jax ({said})")
            if reason:
                raise UserError(f"worker {worker} {reason}")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._client.close()

    def capacity(self) -> int:
        if time.monotonic() > self._looked + _LOOK_SECONDS:
            self._look()
        return self._capacity

    def _look(self) -> None:
        """Workers come and go."""
        try:
            self._capacity = sum(self._client.nthreads().values())
        except (OSError, TimeoutError) as error:
            raise self._gone() from error
        self._looked = time.monotonic()
        if self._capacity:
            self._seen = self._looked
        elif self._looked > self._seen + _WORKERLESS_SECONDS:
            raise RunError(
                f"the scheduler {self._address} has had no worker for {_WORKERLESS_SECONDS} s; "
                "what is finished is kept: start workers and the same command again"
            )

    def _gone(self) -> RunError:
        return RunError(
            f"the scheduler {self._address} is gone; what is finished is kept: start it and the "
            "same command again"
        )

    def submit(self, job: Job) -> Any:
        checked = _Checked(job, self._setting)
        key = f"{type(job).__name__}-{uuid.uuid4().hex}"
        return self._client.submit(_call, checked, key=key, pure=False)

    def wait(self, futures: Iterable[Any]) -> set[Any]:
        waited = list(futures)
        while True:
            try:
                done = self._distributed.wait(
                    waited, timeout=_LOOK_SECONDS, return_when="FIRST_COMPLETED"
                ).done
            except TimeoutError:
                self._look()
            except self._distributed.CancelledError as error:
                raise self._gone() from error
            else:
                return set(done)

    def result(self, future: Any) -> Any:
        try:
            return future.result()
        except self._distributed.KilledWorker as error:
            raise RunError(
                f"workers died again and again of one job ({future.key}; out of memory?); start "
                "the same command again, with more memory to a worker or a smaller "
                "--config.prepare.block_kb"
            ) from error
        except self._distributed.comm.core.CommClosedError as error:
            raise self._gone() from error
        except self._distributed.CancelledError as error:
            raise self._gone() from error
