"""The external sort: the same shards however rows are merged, and files opened in proportion."""

import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from etils import epath
from helpers import small_config, write_pile
from in_process import InProcess, Stopped

from looped_jax.data import preparation, sorted_runs
from looped_jax.data.documents import Block
from looped_jax.data.packed_blocks import PackBlock, Packed, Packing
from looped_jax.data.sorted_runs import Fan, PackedBlock, plan, run_of
from looped_jax.data.workers import progress

DIRECT = Fan(files=1, shard=10**9)  # Every shard looks into every block.


def prepare(
    monkeypatch: pytest.MonkeyPatch,
    pile: pathlib.Path,
    output: pathlib.Path,
    fan: Fan,
    limit: int | None = None,
) -> None:
    config = small_config(
        data__task="text",
        data__length=32,
        data__path=str(pile),
        prepare__block_kb=1,
        prepare__shards=17,
    )
    with monkeypatch.context() as patch:
        patch.setattr(preparation, "Pool", lambda workers: InProcess(limit))
        patch.setattr(sorted_runs, "Fan", lambda: fan)
        preparation.prepare(config, epath.Path(output))


def files(folder: pathlib.Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.fixture(scope="module")
def pile(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("pile")
    write_pile(folder)
    return folder


@pytest.mark.parametrize(
    "fan", [Fan(), Fan(2, shard=1), Fan(3, shard=2), Fan(bytes=3000, shard=2), Fan(5, shard=1)]
)
def test_shards_are_the_same_however_rows_are_merged(
    fan: Fan, monkeypatch: pytest.MonkeyPatch, pile: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    prepare(monkeypatch, pile, tmp_path / "direct", DIRECT)
    prepare(monkeypatch, pile, tmp_path / "merged", fan)
    assert files(tmp_path / "direct") == files(tmp_path / "merged")


def test_stopped_before_any_job_it_ends_with_the_same_bytes(
    monkeypatch: pytest.MonkeyPatch, pile: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    fan = Fan(3, shard=2)
    prepare(monkeypatch, pile, tmp_path / "whole", fan)
    for jobs in (1, 7):  # After every job, and at other places: after seven.
        output, starts = tmp_path / f"out{jobs}", 0
        while not (output / "manifest.json").exists():
            starts += 1
            try:
                prepare(monkeypatch, pile, output, fan, limit=jobs)
            except Stopped:
                assert not (output / "manifest.json").exists()
        assert starts > 10
        assert files(output) == files(tmp_path / "whole")


def test_of_levels_that_are_merged_only_the_last_two_lie_on_the_disk(
    monkeypatch: pytest.MonkeyPatch, pile: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    prepare(monkeypatch, pile, tmp_path / "whole", DIRECT)
    most = 0

    def look(job: Any) -> None:
        nonlocal most
        work = tmp_path / "out" / "work" / "train"
        sizes = [p.stat().st_size for kind in ("rows", "run") for p in work.glob(f"*.{kind}")]
        most = max(most, sum(sizes))

    monkeypatch.setattr(InProcess, "submit", _before(look, InProcess.submit))
    prepare(monkeypatch, pile, tmp_path / "out", Fan(2, shard=1))
    blocks = list(_packed_bytes(monkeypatch, pile, tmp_path / "once"))
    # Two levels, each with its tables; six were made.
    assert most < 3 * sum(blocks)


def _before(look: Any, submit: Any) -> Any:
    def looked(self: InProcess, job: Any) -> Any:
        look(job)
        return submit(self, job)

    return looked


def _packed_bytes(
    monkeypatch: pytest.MonkeyPatch, pile: pathlib.Path, output: pathlib.Path
) -> Iterator[int]:
    with pytest.raises(Stopped):
        prepare(monkeypatch, pile, output, Fan(), limit=20)
    yield from (p.stat().st_size for p in (output / "work" / "train").glob("*.rows"))


OPENED: list[str] = []
WATCHED: list[str] = []


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and WATCHED and str(arguments[0]).startswith(WATCHED[0]):
        OPENED.append(str(arguments[0]))


sys.addaudithook(_watch)


def opens(folder: pathlib.Path, blocks: int, shards: int, fan: Fan) -> int:
    """How many files are opened to merge so many blocks, and for all shards to read them."""
    folder.mkdir()
    packing = Packing(8, "bytes", {}, 0)
    packed = []
    for number in range(blocks):
        block = Block("x", 1, b'{"text": "%d"}\n' % number)
        done = PackBlock(packing, block, (0, number), f"{number}", epath.Path(folder))()
        assert isinstance(done, Packed)
        packed.append(PackedBlock(epath.Path(folder), number, done.name, done.bytes))
    WATCHED[:], OPENED[:] = [str(folder)], []
    levels = plan(packed, (0, 0), shards, epath.Path(folder), fan)
    with progress("", 0, "") as bar:
        for level in levels:
            list(InProcess().run(((job, 1) for job in level.jobs), bar))
    rows = 0
    for shard in range(shards):
        runs = [run_of(column, shard) for column in levels[-1].columns]
        rows += len(sorted_runs.read(runs, shard, shard + 1))
    WATCHED.clear()
    assert rows == blocks
    return len(OPENED)


def test_files_opened_grow_as_blocks_and_shards_not_as_their_product(
    tmp_path: pathlib.Path,
) -> None:
    fan = Fan(files=4, shard=8)
    counts = {
        (blocks, shards): opens(tmp_path / f"{blocks}-{shards}", blocks, shards, fan)
        for blocks in (64, 256)
        for shards in (32, 128)
    }
    for (blocks, shards), count in counts.items():
        levels = np.log2(blocks) / np.log2(fan.files)
        assert count <= 3 * levels * blocks + fan.shard * shards, counts
    # Four times as many of both: sixteen times the pairs, but few more than four times the files.
    assert counts[256, 128] < 6 * counts[64, 32], counts
    pairs = opens(tmp_path / "direct", 64, 128, DIRECT)
    assert pairs > 64 * 128 > 5 * counts[64, 128]
