"""Rows of prepared shards, at random; those of a bucket are copied to a disk as they are met."""

import bisect
import contextlib
import itertools
import threading
from collections.abc import Sequence
from typing import Any

from etils import epath

from looped_jax.data.manifest import Manifest
from looped_jax.storage.buckets import in_bucket
from looped_jax.storage.cache import local_copy


def shard_records(manifest: Manifest, split: str) -> Any:
    """Records (data/text.py) of a split; errors as Manifest.shards."""
    import grain

    paths = manifest.shards(split)
    if not in_bucket(manifest.folder):
        return grain.sources.ArrayRecordDataSource([str(path) for path in paths])
    return CopiedShards(paths, manifest.splits[split]["shards"])


class CopiedShards:
    """The rows of shards that are fetched when the first row of each is asked for, and the next
    shard then too: training reads them in order, so that it seldom waits."""

    def __init__(self, paths: Sequence[epath.Path], known: Sequence[dict[str, Any]]):
        """``known``: of each its rows, bytes and sha256, from the manifest."""
        self._paths, self._known = list(paths), list(known)
        self._ends = [*itertools.accumulate(int(shard["rows"]) for shard in known)]
        self._open: dict[int, Any] = {}
        self._ahead: threading.Thread | None = None

    def __getstate__(self) -> dict[str, Any]:  # For the processes of a data loader.
        return {**self.__dict__, "_open": {}, "_ahead": None}

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> bytes:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[bytes]:
        """The rows with these indices, in the order asked for."""
        found: dict[int, bytes] = {}
        of_shard: dict[int, list[int]] = {}
        for index in indices:
            of_shard.setdefault(bisect.bisect_right(self._ends, index), []).append(index)
        for shard, asked in of_shard.items():
            first = self._ends[shard - 1] if shard else 0
            rows = self._source(shard).__getitems__([index - first for index in asked])
            found.update(zip(asked, rows, strict=True))
        return [found[index] for index in indices]

    def _source(self, shard: int) -> Any:
        if shard not in self._open:
            import grain

            copy = self._fetch(shard)
            self._open[shard] = grain.sources.ArrayRecordDataSource([str(copy)])
            self._fetch_ahead(shard + 1)
        return self._open[shard]

    def _fetch(self, shard: int) -> epath.Path:
        known = self._known[shard]
        return local_copy(self._paths[shard], known["bytes"], known["sha256"])

    def _fetch_ahead(self, shard: int) -> None:
        if shard >= len(self._paths) or (self._ahead is not None and self._ahead.is_alive()):
            return

        def fetch() -> None:
            with contextlib.suppress(Exception):  # Whoever needs it tries again, and says why.
                self._fetch(shard)

        self._ahead = threading.Thread(target=fetch, daemon=True)
        self._ahead.start()
