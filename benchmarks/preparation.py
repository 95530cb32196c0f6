"""Preparing more text than one machine holds: what merging costs, and how fast text is handed out.

Merge: blocks of one row each, as many as a large corpus has, are merged and read by as many shards,
in one process; files opened and seconds. `direct` is every shard looking into every block, at a
size that ends, and per pair of a block and a shard.

Feed: MB of text that one process reads, decompresses, cuts and names (what starts the jobs of
`looped_jax.prepare`) per second of its own processor time, alone and with two processes that get it
and do nothing with it; the best of five.

    python -m benchmarks.preparation --pile=$PILE_DIR
"""

import argparse
import functools
import pathlib
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

from etils import epath
from tqdm import tqdm

from benchmarks.common import machine, save
from looped_jax.data import packed_blocks, sorted_runs
from looped_jax.data.documents import Block, Shards
from looped_jax.data.packed_blocks import PackBlock, Packed, Packing, block_name
from looped_jax.data.shard_writer import WriteShard
from looped_jax.data.sorted_runs import Fan, PackedBlock, plan, run_of
from looped_jax.data.workers import Pool, Workers, progress

DIRECT = Fan(files=1, shard=10**9)
BLOCK = 1 << 24
OPENED = 0
WATCHED = ""


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    global OPENED
    if event == "open" and WATCHED and str(arguments[0]).startswith(WATCHED):
        OPENED += 1


def merging(folder: pathlib.Path, blocks: int, shards: int, fan: Fan) -> dict[str, Any]:
    """Files opened and seconds of merging so many blocks into so many shards."""
    global OPENED, WATCHED
    work, output = epath.Path(folder / "work"), epath.Path(folder / "output")
    for path in (work, output):
        path.mkdir(parents=True)
    packing = Packing(8, "bytes", {}, 0)
    packed = []
    for number in tqdm(range(blocks), desc="blocks"):
        block = Block("x", 1, b'{"text": "%d"}' % number)
        done = PackBlock(packing, block, (0, number), f"{number}", work)()
        assert isinstance(done, Packed)
        packed.append(PackedBlock(work, number, done.name, done.bytes))
    WATCHED, OPENED = str(folder), 0
    start = time.perf_counter()
    levels = plan(packed, (0, 0), shards, work, fan)
    for level in levels:
        for job in tqdm(level.jobs, desc="merge"):
            job()
    merged, rows = time.perf_counter(), 0
    for shard in tqdm(range(shards), desc="shards"):
        runs = tuple(run_of(column, shard) for column in levels[-1].columns)
        rows += WriteShard("x", shard, shards, runs, work, output)()["rows"]
    end = time.perf_counter()
    WATCHED = ""
    assert rows == blocks
    return {
        "blocks": blocks,
        "shards": shards,
        "levels": len(levels),
        "files_opened": OPENED,
        "merge_seconds": merged - start,
        "shard_seconds": end - merged,
    }


def discard(block: Block) -> int:
    """A job that does nothing with its block."""
    return len(block.content)


def feeding(pile: str, workers: Workers | None) -> float:
    """MB of text per second of this process's own time."""
    source = Shards.find(pile, "train-*")

    def blocks() -> Iterator[tuple[Any, int]]:
        for block in source.blocks(BLOCK):
            block_name(block)
            yield functools.partial(discard, block), block.read

    start = time.process_time()
    if workers is None:
        total = sum(len(job.args[0].content) for job, _ in blocks())
    else:
        with progress("feed", 0, "B") as bar:
            total = sum(workers.run(blocks(), bar))
    return total / 1e6 / (time.process_time() - start)


def main() -> None:
    """Measures both and saves the results."""
    sys.addaudithook(_watch)
    results: dict[str, Any] = {"machine": machine(), "merge": [], "feed_mb_per_second": {}}
    # Blocks and shards are files that need not outlive a power cut here.
    packed_blocks.write_once = sorted_runs.write_once = _unsynced
    for blocks, shards, fan, name in (
        (1000, 60, DIRECT, "direct"),
        (1000, 60, Fan(), "merged"),
        (ARGUMENTS.blocks, ARGUMENTS.shards, Fan(), "merged"),
    ):
        with tempfile.TemporaryDirectory() as folder:
            found = {"way": name, **merging(pathlib.Path(folder), blocks, shards, fan)}
        pairs = blocks * shards
        seconds = found["merge_seconds"] + found["shard_seconds"]
        print(
            f"{name}: {blocks:,} blocks x {shards:,} shards: {found['files_opened']:,} files "
            f"opened, {seconds:.1f} s ({1000 * seconds / pairs:.4f} ms a pair)"
        )
        results["merge"].append(found)
    feed = results["feed_mb_per_second"]
    feed["reading alone"] = max(feeding(ARGUMENTS.pile, None) for _ in range(5))
    with Pool(2) as pool:
        feed["to two processes"] = max(feeding(ARGUMENTS.pile, pool) for _ in range(5))
    for way, rate in feed.items():
        print(f"feed, {way}: {rate:,.0f} MB/s")
    save("preparation", results)


def _unsynced(path: epath.Path, content: str | bytes) -> None:
    path.write_bytes(content.encode() if isinstance(content, str) else content)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pile", required=True, help="folder of Pile-format shards")
    parser.add_argument("--blocks", type=int, default=50_000)
    parser.add_argument("--shards", type=int, default=3_000)
    ARGUMENTS = parser.parse_args()
    main()
