"""Text from Hugging Face datasets by name, streamed: `hf:NAME[:CONFIG][@REVISION]`, whose splits
config.data.*_files name. NAME may be a folder on disk.

What is read is pinned before anything is: the commit, and each data file by its size and SHA-256,
which the hub knows without sending it. A preparation that was killed goes on in the data file where
the first of its missing blocks begins.
"""

import dataclasses
import functools
import hashlib
import io
import math
import os
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any

import datasets
import fsspec.compression
import huggingface_hub
from datasets.exceptions import DataFilesNotFoundError, DatasetNotFoundError
from etils import epath

from looped_jax.data import files, tables
from looped_jax.data.documents import Block, Source, cut_blocks, decompressed
from looped_jax.data.records import Reading, document_of, line_of
from looped_jax.errors import RunError, UserError, nearest

_SPEC = re.compile(r"(?P<name>[^:@]+)(:(?P<config>[^@]+))?(@(?P<revision>.+))?")
_SPLIT = re.compile(r"(?P<name>\w[\w.-]*)(\[(?P<first>\d*):(?P<end>\d*)\])?")
_HUB_FILE = re.compile(r"hf://datasets/(?P<repo>.+?)@(?P<revision>[^/]+)/(?P<path>.+)")
# What a connection that fails raises comes from one of these, or is an OSError.
_OF_NETWORKS = ("aiohttp", "fsspec", "httpcore", "httpx", "huggingface_hub", "requests", "urllib3")
_LATER = (408, 429)  # Answers that say: ask later.
TRIES = 3  # Of a row; `datasets` itself tries for ten minutes each time.
_PATHS_AT_ONCE = 500


class _Zstd(io.RawIOBase):
    """What is in a zstd file, of whatever frames; ValueError where it is cut, which the readers
    that fsspec has by itself take for the end of it."""

    def __init__(self, file: Any, mode: str = "r"):
        assert mode[0] == "r", mode
        self._chunks, self._held = decompressed(file, ".zst"), b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._held:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            if isinstance(chunk, Exception):
                raise chunk
            self._held = chunk
        part, self._held = self._held[: len(buffer)], self._held[len(buffer) :]
        buffer[: len(part)] = part
        return len(part)


def _open_zstd(file: Any, mode: str = "r", **_: Any) -> io.BufferedReader:
    return io.BufferedReader(_Zstd(file, mode), 1 << 20)


fsspec.compression.register_compression("zstd", _open_zstd, "zst", force=True)


@dataclasses.dataclass(frozen=True)
class HubSource:
    """Some rows of a split, in its own order, as JSON lines."""

    builder: Any  # datasets.DatasetBuilder.
    where: str  # For messages.
    split: str
    first: int
    end: int | None
    reading: Reading

    @property
    def _data_files(self) -> list[str]:
        return [str(path) for path in self.builder.config.data_files[self.split]]

    @functools.cached_property
    def _entries(self) -> list[dict[str, Any]]:
        return _identities(self._data_files)

    def identity(self) -> list[dict[str, Any]]:
        """See Source; of a part of a split the files are told apart by which part it is."""
        entries = [dict(entry) for entry in self._entries]
        if (self.first, self.end) != (0, None):
            rows = f"[{self.first or ''}:{'' if self.end is None else self.end}]"
            for entry in entries:
                entry["sha256"] = hashlib.sha256(f"{entry['sha256']}{rows}".encode()).hexdigest()
                entry["rows"] = rows
        config = self.builder.config.name
        return [{**entry, "config": config, "revision": self.revision} for entry in entries]

    @property
    def revision(self) -> str | None:
        """The commit that is read; None of a folder, which has none."""
        found = _HUB_FILE.fullmatch(self._data_files[0])
        return found and found["revision"]

    def blocks(self, size: int, position: Any = None) -> Iterator[Block]:
        """See Source. RunError if the connection fails for good, or ends before the split does."""
        position = position or {"file": 0, "row": 0, "rows": 0, "read": 0}
        total = sum(entry["bytes"] for entry in self._entries)
        expected, lines, read = self._count(), _Lines(self, position), position["read"]
        first_line = lines.rows + 1
        # A line at a time: where a block ends, the source stands behind its last row.
        for block in cut_blocks(iter(lines), self.where, size):
            before, at = read, lines.position()
            content = len(block.content)
            read = total * lines.rows // expected if expected else min(total, read + content)
            yield dataclasses.replace(
                block,
                first_line=first_line,
                read=read - before,
                position={**at, "read": read},
            )
            first_line = lines.rows + 1
        if expected is not None and lines.rows != expected:
            raise RunError(
                f"{self.where}: {lines.rows} rows came, its card says {expected}; if the card is "
                "wrong, download the files and give their folder as config.data.path"
            )
        if not lines.rows:
            raise UserError(f"{self.where}: empty")

    def _count(self) -> int | None:
        """How many rows there are, where that is said."""
        known = (self.builder.info.splits or {}).get(self.split)
        if known is None or not known.num_examples:
            return None
        count = int(known.num_examples)
        return max(0, (count if self.end is None else min(count, self.end)) - self.first)

    def open(self) -> Any:
        """datasets.IterableDataset of the columns that are needed; UserError if one is not there
        or holds no text."""
        dataset = self.builder.as_streaming_dataset(split=self.split)
        if dataset.features is None:
            return dataset
        schema = dataset.features.arrow_schema
        columns = sorted(tables.top_columns(schema, self.where, self.reading))
        if hasattr(self.builder.config, "columns"):  # Parquet: no others are fetched.
            self.builder.config.columns = columns
            dataset = self.builder.as_streaming_dataset(split=self.split)
        return dataset.select_columns(columns)


class _Lines:
    """The rows of a source as lines, data file by data file, each opened again where it was when
    the connection fails."""

    def __init__(self, source: HubSource, position: Any):
        self._source = source
        self._file, self._row = position["file"], position["row"]  # What comes next.
        self.rows: int = position["rows"]  # That were given.

    def position(self) -> dict[str, int]:
        """Where it stands, behind the last row that was given."""
        return {"file": self._file, "row": self._row, "rows": self.rows}

    def __iter__(self) -> Iterator[bytes]:
        source = self._source
        skip = source.first if not self.rows else 0
        most = math.inf if source.end is None else source.end - source.first
        if self.rows >= most:
            return
        for row in self._all_rows():
            if skip:
                skip -= 1
                continue
            where = f"{source.where}, row {source.first + self.rows} (from 0)"
            line = line_of(document_of(row, where, source.reading))
            self.rows += 1
            yield line
            if self.rows == most:
                return

    def _all_rows(self) -> Iterator[dict[str, Any]]:
        where = self._source.where
        failures, dataset = 0, _asked(where, self._source.open)
        while self._file < (count := dataset.num_shards):
            try:
                shard = dataset.shard(num_shards=count, index=self._file)
                for row in shard.skip(self._row) if self._row else shard:
                    failures = 0
                    self._row += 1
                    yield row
            except Exception as error:
                if self._source.revision is None or not _is_of_network(error):
                    raise UserError(f"{where}: cannot be read ({_said(error)})") from error
                failures += 1
                if failures == TRIES:
                    raise _unreachable(where, error) from error
                time.sleep(2**failures)
                dataset = _asked(where, self._source.open)
            else:
                self._file, self._row = self._file + 1, 0


def hub_sources(spec: str, splits: Mapping[str, str], reading: Reading) -> dict[str, Source]:
    """The splits of a dataset, by the names that our splits have there (`train`, `train[1000:]`,
    `train[:1000]`). UserError if there is no such dataset, configuration, split or column; RunError
    if the hub cannot be reached."""
    if os.path.isdir(spec):
        name, config, revision = spec, None, None
    elif found := _SPEC.fullmatch(spec):
        name, config, revision = found["name"], found["config"], found["revision"]
    else:
        raise UserError(f"config.data.path=hf:{spec} is not hf:NAME, hf:NAME:CONFIG or …@REVISION")
    where = f"hf:{spec}"
    builder = _asked(where, lambda: datasets.load_dataset_builder(name, config, revision=revision))
    there = [str(name) for name in builder.config.data_files or {}]
    sources: dict[str, HubSource] = {}
    for ours, asked in splits.items():
        found = _SPLIT.fullmatch(asked)
        if not found or found["name"] not in there:
            raise UserError(
                f"config.data.{ours}_files={asked!r} is no split of {where}; it has "
                f"{', '.join(there) or 'none'} (or train[:1000], train[1000:]; empty: none)"
                + nearest(asked, there)
            )
        first, end = int(found["first"] or 0), int(found["end"]) if found["end"] else None
        if end is not None and end <= first:
            raise UserError(f"config.data.{ours}_files={asked!r} has no row")
        source = HubSource(builder, f"{where} {asked}", found["name"], first, end, reading)
        for other, before in sources.items():
            if before.split == source.split and _overlap(before, source):
                raise UserError(
                    f"config.data.{other}_files={splits[other]!r} and config.data.{ours}_files="
                    f"{asked!r} have rows in common"
                )
        sources[ours] = source
    for source in sources.values():
        _asked(source.where, source.open)
    return dict(sources)


def _overlap(a: HubSource, b: HubSource) -> bool:
    return (b.end is None or a.first < b.end) and (a.end is None or b.first < a.end)


def _identities(paths: list[str]) -> list[dict[str, Any]]:
    """Name, size and SHA-256 of data files, from the hub or of files on disk."""
    found = [_HUB_FILE.fullmatch(path) for path in paths]
    if not found[0]:
        return [files.identity(epath.Path(path)) for path in paths]
    api = huggingface_hub.HfApi()
    repo, revision = found[0]["repo"], found[0]["revision"]
    names = [each["path"] for each in found if each]

    def ask() -> list[Any]:
        parts = [names[i : i + _PATHS_AT_ONCE] for i in range(0, len(names), _PATHS_AT_ONCE)]
        told = [api.get_paths_info(repo, p, revision=revision, repo_type="dataset") for p in parts]
        return [info for infos in told for info in infos]

    infos = {info.path: info for info in _asked(f"hf:{repo}", ask)}
    if lost := [name for name in names if name not in infos]:
        raise RunError(f"hf:{repo}@{revision}: the hub does not know the size of {lost[0]}")
    return [
        {
            "file": path,
            "bytes": infos[name].size,
            # A small file is kept in git, which knows it by its own hash.
            "sha256": infos[name].lfs.sha256 if infos[name].lfs else f"git:{infos[name].blob_id}",
        }
        for path, name in zip(paths, names, strict=True)
    ]


def _asked(where: str, ask: Any) -> Any:
    """What the hub answers; UserError if it knows no such thing, RunError if it does not answer."""
    try:
        return ask()
    except (UserError, RunError):
        raise
    except (DatasetNotFoundError, DataFilesNotFoundError) as error:
        raise UserError(f"{where}: {_said(error)}") from error
    except Exception as error:
        if _is_of_network(error):
            raise _unreachable(where, error) from error
        raise UserError(f"{where}: {_said(error)}") from error


def _unreachable(where: str, error: Exception) -> RunError:
    return RunError(
        f"{where}: the connection fails ({_said(error)}); what is finished is kept: start the same "
        "command again"
    )


def _is_of_network(error: Exception) -> bool:
    """Whether to try again may help: not where the hub, or the disk, says that there is nothing."""
    status = getattr(getattr(error, "response", None), "status_code", 0)
    if isinstance(error, FileNotFoundError) or (status in range(400, 500) and status not in _LATER):
        return False
    kinds = {kind.__module__.split(".")[0].rstrip("0123456789") for kind in type(error).__mro__}
    return isinstance(error, OSError) or not kinds.isdisjoint(_OF_NETWORKS)


def _said(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
