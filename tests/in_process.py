"""Jobs of preparing data in this process, where a test can see what they do."""

from collections.abc import Callable, Iterable
from typing import Any

from looped_jax.data.workers import Job, Workers


class Stopped(BaseException):
    """As if the process had been killed."""


class Done:
    """What a job returned."""

    def __init__(self, value: Any):
        self.value = value


class InProcess(Workers):
    """Does each job as it is submitted; stops before one more than ``limit``."""

    def __init__(self, limit: int | None = None, seen: Callable[[Job], Any] = lambda job: None):
        self.limit, self.seen = limit, seen

    def __exit__(self, *_: object) -> None:
        pass

    def capacity(self) -> int:
        return 1

    def submit(self, job: Job) -> "Done":
        if self.limit is not None:
            if not self.limit:
                raise Stopped
            self.limit -= 1
        self.seen(job)
        return Done(job())

    def wait(self, futures: Iterable[Any]) -> set[Any]:
        return {next(iter(futures))}

    def result(self, future: Any) -> Any:
        return future.value
