"""The shuffle: an external sort of packed rows by random keys.

Every row draws a random 64-bit key from (seed, split, number of its block); rows sorted by key are
uniformly shuffled. The range of the keys is divided evenly between the output shards. A shard that
looked into every block would make blocks times shards file opens, so rows are merged in levels:

1. Groups of blocks, at most Fan.files of them and Fan.bytes of rows, become *runs*: files sorted
   by key, each of which says where the rows of each shard begin.
2. While there are more than Fan.shard runs side by side, Fan.files of them at a time are merged
   into a *column*: runs for consecutive ranges of shards, so that each is again of about Fan.bytes.

A shard then reads one run of each column. Each level opens each file of the one before at most
Fan.files times more than it makes files, whatever the number of shards; memory is Fan.bytes twice.

A run's name is a hash of what it is made of, so a run that exists is the right one.
"""

import bisect
import dataclasses
import hashlib
import itertools
import json
import operator
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, Any

import numpy as np
from etils import epath

from looped_jax.data.files import write_once
from looped_jax.data.packed_blocks import read_rows

_ROW = struct.Struct("<QI")  # Key and length of a row, before it.
_OFFSET = np.dtype("<i8")


@dataclasses.dataclass(frozen=True)
class Fan:
    """How much is merged at a time."""

    files: int = 64
    bytes: int = 1 << 27  # Of rows, in memory.
    shard: int = 256  # Runs that a shard reads.


@dataclasses.dataclass(frozen=True)
class Run:
    """A file of the rows, sorted by key, of the shards ``first`` to ``last`` - 1: int64 offsets
    [last - first + 1] of where each of them begins and the last one ends, then the rows."""

    path: epath.Path
    first: int
    last: int


Column = list[Run]  # Of consecutive ranges that cover all shards.


@dataclasses.dataclass(frozen=True)
class PackedBlock:
    """Where a packed block's rows are, and how many bytes."""

    folder: epath.Path
    number: int
    name: str
    bytes: int


@dataclasses.dataclass(frozen=True)
class MergeBlocks:
    """A job: the rows of some blocks, with their keys, as a run of all shards."""

    blocks: tuple[PackedBlock, ...]
    seed: tuple[int, int]  # config.prepare.seed and the split's number.
    shards: int
    run: Run

    def __call__(self) -> None:
        rows: list[tuple[int, bytes]] = []
        for block in self.blocks:
            records = list(read_rows(block.folder, block.number, block.name))
            random = np.random.default_rng([*self.seed, block.number])
            keys = random.integers(0, 1 << 64, len(records), np.uint64)
            rows += zip(keys.tolist(), records, strict=True)
        _write(self.run, rows, self.shards)


@dataclasses.dataclass(frozen=True)
class MergeRuns:
    """A job: what several runs have of a range of shards, as one run."""

    runs: tuple[Run, ...]
    shards: int
    run: Run

    def __call__(self) -> None:
        _write(self.run, read(self.runs, self.run.first, self.run.last), self.shards)


Merge = MergeBlocks | MergeRuns


@dataclasses.dataclass(frozen=True)
class Level:
    """What makes columns of blocks or of the level before; each job makes one run."""

    columns: list[Column]
    jobs: list[Merge]

    def files(self) -> Iterator[epath.Path]:
        """Of its runs."""
        return (run.path for column in self.columns for run in column)

    def is_whole(self) -> bool:
        """Whether all of its runs are there."""
        return all(path.exists() for path in self.files())


def plan(
    blocks: Sequence[PackedBlock],
    seed: tuple[int, int],
    shards: int,
    folder: epath.Path,
    fan: Fan | None = None,
) -> list[Level]:
    """The levels, from the blocks up to at most Fan.shard columns; their runs lie in ``folder``."""
    fan = fan or Fan()
    jobs: list[Merge] = []
    for group in _groups(blocks, fan):
        made_of = [*seed, shards, [[block.number, block.name] for block in group]]
        jobs.append(MergeBlocks(group, seed, shards, _run(folder, made_of, 0, shards)))
    levels, ranges = [Level([[job.run] for job in jobs], jobs)], 1
    while len(below := levels[-1].columns) > fan.shard:
        # Ranges of a level lie within those of the level below: it is cut files times finer.
        ranges = min(shards, ranges * fan.files)
        bounds = [i * shards // ranges for i in range(ranges + 1)]
        columns, jobs = [], []
        for start in range(0, len(below), fan.files):
            column: Column = []
            for first, last in itertools.pairwise(bounds):
                runs = tuple(run_of(one, first) for one in below[start : start + fan.files])
                made_of = [[run.path.name for run in runs], first, last]
                column.append(_run(folder, made_of, first, last))
                jobs.append(MergeRuns(runs, shards, column[-1]))
            columns.append(column)
        levels.append(Level(columns, jobs))
    return levels


def _groups(blocks: Iterable[PackedBlock], fan: Fan) -> Iterator[tuple[PackedBlock, ...]]:
    group: list[PackedBlock] = []
    size = 0
    for block in blocks:
        if group and (len(group) == fan.files or size + block.bytes > fan.bytes):
            yield tuple(group)
            group, size = [], 0
        group.append(block)
        size += block.bytes
    if group:
        yield tuple(group)


def _run(folder: epath.Path, made_of: Any, first: int, last: int) -> Run:
    name = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:40]
    return Run(folder / f"{name}.run", first, last)


def run_of(column: Column, shard: int) -> Run:
    """The run that has a shard's rows."""
    return column[bisect.bisect_right(column, shard, key=lambda run: run.first) - 1]


def read(runs: Iterable[Run], first: int, last: int) -> list[tuple[int, bytes]]:
    """(key, stored row) of the shards ``first`` to ``last`` - 1, one run after another."""
    rows: list[tuple[int, bytes]] = []
    for run in runs:
        with run.path.open("rb") as file:
            start, end = (_offset(file, shard - run.first) for shard in (first, last))
            file.seek(start)
            content = file.read(end - start)
        at = 0
        while at < len(content):
            key, size = _ROW.unpack_from(content, at)
            at += _ROW.size
            rows.append((key, content[at : at + size]))
            at += size
    return rows


def _offset(file: IO[bytes], index: int) -> int:
    file.seek(index * _OFFSET.itemsize)
    return int.from_bytes(file.read(_OFFSET.itemsize), "little")


def sort_rows(rows: list[tuple[int, bytes]]) -> None:
    """Sorts by key; rows of equal keys stay in the order of their blocks."""
    rows.sort(key=operator.itemgetter(0))


def shard_of(keys: np.ndarray, shards: int) -> np.ndarray:
    """Which of the equal ranges of all uint64 a key is in."""
    return ((keys >> np.uint64(32)) * np.uint64(shards)) >> np.uint64(32)


def _write(run: Run, rows: list[tuple[int, bytes]], shards: int) -> None:
    sort_rows(rows)
    keys = np.array([key for key, _ in rows], np.uint64)
    table = run.last - run.first + 1
    sizes = [_ROW.size + len(row) for _, row in rows]
    ends = np.cumsum([table * _OFFSET.itemsize, *sizes], dtype=_OFFSET)
    starts = np.searchsorted(shard_of(keys, shards), np.arange(run.first, run.last + 1))
    parts = [ends[starts].tobytes()]
    for key, row in rows:
        parts += (_ROW.pack(key, len(row)), row)
    write_once(run.path, b"".join(parts))
