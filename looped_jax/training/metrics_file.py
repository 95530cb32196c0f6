"""Metrics of a run: `metrics.jsonl`, one object a line, with `step`."""

import contextlib
import json
from collections.abc import Iterator
from typing import Any

from etils import epath

from looped_jax.data.files import write_whole
from looped_jax.data.json_text import say_once, sound_lines
from looped_jax.errors import RunError
from looped_jax.parallel import distributed
from looped_jax.storage.appended import Appended


def read_metrics(workdir: epath.Path) -> list[dict[str, float]]:
    """The lines of metrics.jsonl; those that are damaged are left out, and said once."""
    path = workdir / "metrics.jsonl"
    lines, problems = sound_lines(path, _is_line)
    if distributed.is_first():
        say_once(path, problems)
    return lines


def _is_line(line: dict[str, Any]) -> bool:
    return isinstance(line.get("step"), (int, float))


class MetricsWriter:
    """Appends to the metrics of a workdir.

    A resumed run repeats the steps after its checkpoint, so what was written about them by the
    run that died is removed first: afterwards the file is as if nothing had happened. Of several
    processes one writes; the others only remember what has been evaluated.
    """

    def __init__(self, workdir: epath.Path, resumed_step: int, writes: bool = True):
        self._writes = writes
        self._path = workdir / "metrics.jsonl"
        self._evaluated: set[int] = set()
        # What earlier starts have written of the steps that are not repeated.
        self.kept = [line for line in read_metrics(workdir) if line["step"] <= resumed_step]
        for line in self.kept:
            if any(name.startswith("eval/") for name in line):
                self._evaluated.add(int(line["step"]))
        if not writes:
            return
        whole = "".join(json.dumps(line) + "\n" for line in self.kept)
        with self._writing():
            write_whole(self._path, whole)
            self._file = Appended(self._path)

    def evaluated(self, step: int) -> bool:
        """Whether an evaluation at this step has been written."""
        return step in self._evaluated

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """Writes named scalars of one step."""
        if any(name.startswith("eval/") for name in scalars):
            self._evaluated.add(step)
        if not self._writes:
            return
        with self._writing():
            self._file.write(json.dumps({"step": step, **scalars}) + "\n")

    def sync(self) -> None:
        """Puts on disk what was written: before the checkpoint that makes it final."""
        if self._writes:
            with self._writing():
                self._file.sync()

    def close(self) -> None:
        """Ends the file."""
        if self._writes:
            with self._writing():
                self._file.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RunError(
                f"cannot write {self._path}: {error.strerror}; the same command goes on from the "
                "last checkpoint"
            ) from error
