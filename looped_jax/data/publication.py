"""Prepared data that goes to a bucket: made on a disk, where files can be sorted, then copied.

The manifest is copied last, so a folder of the bucket that has one is whole. Whose the folder is
was claimed before (data/claim.py): an object of a shard's name and size is that shard.
"""

from etils import epath

from looped_jax.data.files import sizes_in, write_whole
from looped_jax.data.manifest import BYTES_OF_ID, NAME, Manifest
from looped_jax.data.workers import progress
from looped_jax.errors import RunError
from looped_jax.storage import buckets, cache


def made_at(output: epath.Path) -> epath.Path:
    """Where on this disk the content of a bucket's folder is made."""
    return cache.place_of("prepared", output)


def publish(manifest: Manifest, output: epath.Path) -> None:
    """Copies what is finished on a disk to a folder of a bucket, but for what is there already.
    RunError if it does not arrive whole; what did is kept."""
    here = manifest.folder
    sizes, there = sizes_in(here), sizes_in(output)
    shards = [path.name for split in manifest.splits for path in manifest.shards(split)]
    names = [*shards, BYTES_OF_ID]
    with progress("copy to the bucket", sum(sizes[name] for name in names), "B") as bar:
        for name in names:
            if there.get(name) != sizes[name]:
                buckets.upload(here / name, output / name)
            bar.update(sizes[name])
    there = sizes_in(output)
    if short := [name for name in names if there.get(name) != sizes[name]]:
        raise RunError(f"{output / short[0]} did not arrive whole; start the same command again")
    write_whole(output / NAME, (here / NAME).read_bytes())
