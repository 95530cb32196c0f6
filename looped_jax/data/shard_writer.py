"""The last pass of preparing text: an output shard, from sorted runs."""

import dataclasses
import hashlib
import json
import os
import uuid
from collections import Counter
from typing import Any

from etils import epath

from looped_jax.data.files import sha256, write_once
from looped_jax.data.packing import segments_of
from looped_jax.data.sorted_runs import Run, read, sort_rows

_OPTIONS = "group_size:1"  # Rows are read one by one, at random.


@dataclasses.dataclass(frozen=True)
class WriteShard:
    """A job: sorts the rows that ``runs`` have of a shard and writes them as ArrayRecord.

    The result is what the manifest says of it, and `tokens`: predicted tokens by component_id, as
    text. A file in ``work``, written last, says that the shard is whole and what it was made of.
    """

    split: str
    shard: int
    shards: int
    runs: tuple[Run, ...]
    work: epath.Path
    output: epath.Path

    def __call__(self) -> dict[str, Any]:
        shard = self._write(self.output / f"{self._name}.array_record")
        content = {"made_of": self._made_of, "shard": shard}
        write_once(self._marker, json.dumps(content))
        return shard

    def known(self) -> dict[str, Any] | None:
        """The result, if the shard is there."""
        path = self.output / f"{self._name}.array_record"
        if not (self._marker.exists() and path.exists()):
            return None
        content = json.loads(self._marker.read_text())
        return content["shard"] if content.get("made_of") == self._made_of else None

    @property
    def _name(self) -> str:
        return f"{self.split}-{self.shard:05}-of-{self.shards:05}"

    @property
    def _marker(self) -> epath.Path:
        return self.work / f"{self._name}.json"

    @property
    def _made_of(self) -> str:
        return hashlib.sha256(" ".join(run.path.name for run in self.runs).encode()).hexdigest()

    def _write(self, path: epath.Path) -> dict[str, Any]:
        from array_record.python import array_record_module

        rows = read(self.runs, self.shard, self.shard + 1)
        sort_rows(rows)
        temporary = self.work / f"{path.name}.{uuid.uuid4().hex}.tmp"
        tokens: Counter[str] = Counter()
        try:
            writer = array_record_module.ArrayRecordWriter(os.fspath(temporary), _OPTIONS)
            for _, record in rows:
                writer.write(record)
                for segment in segments_of(record):
                    tokens[str(segment.component)] += sum(segment.runs)
            writer.close()
            reader = array_record_module.ArrayRecordReader(os.fspath(temporary))
            whole = reader.num_records() == len(rows)
            reader.close()
        except Exception as error:  # The library raises RuntimeError, or ValueError on reading.
            raise _not_written(temporary, str(error)) from error
        if not whole:
            raise _not_written(temporary, "it has not all of its rows")
        temporary.replace(path)
        return {
            "file": path.name,
            "rows": len(rows),
            "bytes": path.stat().length,
            "sha256": sha256(path),
            "tokens": dict(tokens),
        }


def _not_written(path: epath.Path, reason: str) -> OSError:
    return OSError(0, " ".join(reason.split())[:200], os.fspath(path))
