"""Worker processes: jobs in parallel, a bounded number at a time, ended with their parent."""

import concurrent.futures
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable
from typing import Any

from tqdm import tqdm

from looped_jax.errors import RunError


class Pool:
    """Runs jobs in processes, a bounded number at a time."""

    def __init__(self, workers: int):
        self._workers = workers or os.cpu_count() or 1
        self._executor = concurrent.futures.ProcessPoolExecutor(
            self._workers, multiprocessing.get_context("spawn"), _end_with_parent
        )

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._executor.shutdown(wait=True, cancel_futures=kind is not None)

    def run(self, jobs: Iterable[tuple[Callable[[], Any] | None, int]], bar: tqdm) -> list[Any]:
        """Results of the jobs in the order of their ends (None: nothing to do); advances the bar
        by each job's share."""
        results = []
        pending: dict[concurrent.futures.Future[Any], int] = {}

        def collect(until: int) -> None:
            while len(pending) > until:
                done, _ = concurrent.futures.wait(pending, return_when="FIRST_COMPLETED")
                for future in done:
                    bar.update(pending.pop(future))
                    results.append(_result(future))

        for job, share in jobs:
            if job is None:
                bar.update(share)
            else:
                pending[self._executor.submit(job)] = share
                collect(2 * self._workers)
        collect(0)
        return results


def _end_with_parent() -> None:
    """Ends this worker when its parent is gone, by SIGKILL too: it would wait for ever."""

    def watch() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _result(future: concurrent.futures.Future[Any]) -> Any:
    try:
        return future.result()
    except concurrent.futures.process.BrokenProcessPool as error:
        raise RunError(
            "a worker process died (out of memory?); start the same command again, with fewer "
            "--config.prepare.workers if it did not say why"
        ) from error


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
