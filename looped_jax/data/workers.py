"""Jobs in parallel, a bounded number at a time: in processes that end with their parent, or on the
workers of a cluster (data/cluster.py)."""

import abc
import concurrent.futures
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Self

from tqdm import tqdm

from looped_jax.errors import RunError

Job = Callable[[], Any]  # It can be pickled.


class Workers(abc.ABC):
    """Where jobs are run."""

    def __enter__(self) -> Self:
        return self

    @abc.abstractmethod
    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None: ...

    @abc.abstractmethod
    def capacity(self) -> int:
        """How many jobs run at a time."""

    @abc.abstractmethod
    def submit(self, job: Job) -> Any:
        """A future."""

    @abc.abstractmethod
    def wait(self, futures: Iterable[Any]) -> set[Any]:
        """Waits until at least one is done; those that are."""

    @abc.abstractmethod
    def result(self, future: Any) -> Any:
        """What its job returned, or raises what that raised; RunError if its worker died."""

    def run(self, jobs: Iterable[tuple[Job | None, int]], bar: tqdm) -> Iterator[Any]:
        """Results of the jobs in the order of their ends (None: nothing to do); advances the bar
        by each job's share. Jobs are taken from ``jobs`` as there is room for them."""
        pending: dict[Any, int] = {}

        def collect(until: int) -> Iterator[Any]:
            while len(pending) > until:
                for future in self.wait(pending):
                    bar.update(pending.pop(future))
                    yield self.result(future)

        for job, share in jobs:
            if job is None:
                bar.update(share)
            else:
                pending[self.submit(job)] = share
                yield from collect(2 * self.capacity())
        yield from collect(0)


class Pool(Workers):
    """Processes of this machine; ``workers`` of them, 0: one per core."""

    def __init__(self, workers: int):
        self._workers = workers or os.cpu_count() or 1
        try:
            self._executor = concurrent.futures.ProcessPoolExecutor(
                self._workers, multiprocessing.get_context("spawn"), _end_with_parent
            )
        except OSError as error:
            raise RunError(
                f"worker processes cannot be started ({error.strerror}); make room in /dev/shm and "
                "start the same command again"
            ) from error

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._executor.shutdown(wait=True, cancel_futures=kind is not None)

    def capacity(self) -> int:
        return self._workers

    def submit(self, job: Job) -> concurrent.futures.Future[Any]:
        return self._executor.submit(job)

    def wait(self, futures: Iterable[Any]) -> set[Any]:
        return concurrent.futures.wait(futures, return_when="FIRST_COMPLETED").done

    def result(self, future: concurrent.futures.Future[Any]) -> Any:
        try:
            return future.result()
        except concurrent.futures.process.BrokenProcessPool as error:
            raise RunError(
                "a worker process died (out of memory?); start the same command again, with fewer "
                "--config.prepare.workers if it did not say why"
            ) from error


def _end_with_parent() -> None:
    """Ends this worker when its parent is gone, by SIGKILL too: it would wait for ever."""

    def watch() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def progress(description: str, total: int, unit: str) -> tqdm:
    """A progress bar with rate and time left."""
    return tqdm(
        total=total,
        desc=description,
        unit=unit,
        unit_scale=unit == "B",
        unit_divisor=1000,
        mininterval=0.5,
        smoothing=0.05,
    )
