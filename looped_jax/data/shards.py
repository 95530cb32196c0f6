"""The rows of prepared shards, at random; those of a bucket are copied to this disk first."""

import concurrent.futures
from collections.abc import Mapping
from typing import Any

from etils import epath

from looped_jax.data.manifest import Manifest
from looped_jax.data.workers import progress
from looped_jax.storage.buckets import in_bucket
from looped_jax.storage.cache import local_copy

_AT_ONCE = 8  # Copies.


def shard_records(manifest: Manifest, split: str) -> Any:
    """Records (data/text.py) of a split; errors as Manifest.shards and storage/cache.py."""
    import grain

    paths = manifest.shards(split)
    if in_bucket(manifest.folder):
        paths = _copied(paths, manifest.splits[split]["shards"], split)
    return grain.sources.ArrayRecordDataSource([str(path) for path in paths])


def _copied(
    paths: list[epath.Path], known: list[Mapping[str, Any]], split: str
) -> list[epath.Path]:
    """All of them: rows are read in an order that touches every shard within a few steps."""
    with (
        progress(f"{split}: copy to this disk", sum(of["bytes"] for of in known), "B") as bar,
        concurrent.futures.ThreadPoolExecutor(_AT_ONCE) as pool,
    ):

        def copy(path: epath.Path, of: Mapping[str, Any]) -> epath.Path:
            there = local_copy(path, of["bytes"], of["sha256"])
            bar.update(of["bytes"])
            return there

        return list(pool.map(copy, paths, known))
