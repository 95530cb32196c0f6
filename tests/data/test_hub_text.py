"""Hugging Face datasets by name: streamed, pinned, gone on with where they were."""

import contextlib
import json
import pathlib
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import zstandard
from conftest import ROOT
from etils import epath
from helpers import small_config

from looped_jax.data import preparation
from looped_jax.data.documents import Source, check_apart, parse
from looped_jax.data.files import sha256
from looped_jax.data.records import PILE, Reading
from looped_jax.data.run_data import resolve
from looped_jax.errors import RunError, UserError

pytest.importorskip("datasets", reason="needs the extra `datasets`")
pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

from looped_jax.data import hub_text  # noqa: E402 (imports datasets)

ROWS = [
    {"text": f"text {i} " * (i % 5), "id": i, "meta": {"pile_set_name": "AB"[i % 2]}}
    for i in range(300)
]
TEXTS = [row["text"] for row in ROWS]


def write_dataset(folder: pathlib.Path, kind: str = "parquet", card: str = "") -> pathlib.Path:
    """Three data files of a hundred rows each."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(3):
        part = ROWS[number * 100 : (number + 1) * 100]
        path = folder / f"train-{number}.{kind}"
        if kind == "parquet":
            parquet.write_table(pa.Table.from_pylist(part), path, row_group_size=30)
        else:
            lines = "".join(json.dumps(row) + "\n" for row in part)
            path.write_bytes(zstandard.compress(lines.encode()))
    if card:
        (folder / "README.md").write_text(f"---\n{card}---\n")
    return folder


def source(folder: pathlib.Path | str, split: str = "train", reading: Reading = PILE) -> Source:
    return hub_text.hub_sources(str(folder), {"train": split}, reading)["train"]


def texts(source: Source) -> list[str]:
    return [document.text for block in source.blocks(1000) for document in parse(block)]


@pytest.mark.parametrize("kind", ["parquet", "jsonl.zst"])
def test_a_split_is_all_of_its_rows_and_goes_on_behind_any_block(
    kind: str, tmp_path: pathlib.Path
) -> None:
    train = source(write_dataset(tmp_path / "d", kind), "train[20:]")
    blocks = list(train.blocks(300))
    found = [document for block in blocks for document in parse(block)]
    assert [document.text for document in found] == TEXTS[20:]
    assert [document.component for document in found] == ["A", "B"] * 140
    assert len(blocks) > 30
    assert sum(block.read for block in blocks) <= sum(e["bytes"] for e in train.identity())
    for number, block in enumerate(blocks):
        position = json.loads(json.dumps(block.position))
        assert list(train.blocks(300, position)) == blocks[number + 1 :]
    position = None  # And from each block but one, one after the other.
    for block in blocks:
        following = next(train.blocks(300, position))
        assert following == block
        position = following.position


def test_parts_of_a_split_are_told_apart_and_have_no_row_in_common(tmp_path: pathlib.Path) -> None:
    folder = write_dataset(tmp_path / "d")
    parts = {"train": "train[250:]", "validation": "train[:7]", "test": "train[7:120]"}
    sources = hub_text.hub_sources(str(folder), parts, PILE)
    assert [texts(each) for each in sources.values()] == [TEXTS[250:], TEXTS[:7], TEXTS[7:120]]
    check_apart({split: each.identity() for split, each in sources.items()})
    for other in ("train[:8]", "train", "train[100:110]"):
        with pytest.raises(UserError, match=r"_files='train.*have rows in common"):
            hub_text.hub_sources(str(folder), {**parts, "validation": other}, PILE)


def test_what_is_not_there_is_named_with_what_is(tmp_path: pathlib.Path) -> None:
    folder = write_dataset(tmp_path / "d")
    (tmp_path / "nothing").mkdir()
    cases: list[tuple[Any, str, Reading, str]] = [
        (folder, "trian", PILE, "train_files='trian' is no split .* did you mean 'train'"),
        (folder, "train-*.jsonl.zst", PILE, "is no split of hf:.*; it has train "),
        (folder, "train[:50%]", PILE, r"is no split .*\(or train\[:1000\]"),
        (folder, "train[5:5]", PILE, "has no row"),
        (folder, "train[300:]", PILE, r"train\[300:\]: empty"),
        (folder, "train", Reading("txt"), "no 'txt' .*it has text, id, meta, meta.pile_set_name"),
        (folder, "train", Reading(component="metas"), "no 'metas' .*did you mean 'meta'"),
        (folder, "train", Reading("id"), "'id' .* is of type int64"),
        ("a:b:c@", "train", PILE, "is not hf:NAME"),
        (tmp_path / "nothing", "train", PILE, "hf:.*nothing: "),
    ]
    for name, split, reading, message in cases:
        with pytest.raises(UserError, match=message) as error:
            texts(source(name, split, reading))
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["parquet", "jsonl.zst"])
def test_a_truncated_file_is_never_a_shorter_split(kind: str, tmp_path: pathlib.Path) -> None:
    folder = write_dataset(tmp_path / "d", kind)
    path = folder / f"train-1.{kind}"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match="cannot be read"):
        texts(source(folder))


def test_frames_of_zstd_one_after_the_other_are_all_read(tmp_path: pathlib.Path) -> None:
    frames = [zstandard.compress(f'{{"text": "{name}"}}\n'.encode()) for name in "abc"]
    (tmp_path / "train.jsonl.zst").write_bytes(b"".join(frames))
    assert texts(source(tmp_path)) == list("abc")
    (tmp_path / "train.jsonl.zst").write_bytes(b"".join(frames)[:-3])
    with pytest.raises(UserError, match="truncated zstd data"):
        texts(source(tmp_path))


def test_fewer_rows_than_the_card_says_are_a_fault(tmp_path: pathlib.Path) -> None:
    card = "dataset_info:\n  splits:\n  - name: train\n    num_examples: {}\n"
    folder = write_dataset(tmp_path / "d", card=card.format(300))
    assert texts(source(folder)) == TEXTS
    assert texts(source(folder, "train[:9]")) == TEXTS[:9]
    (folder / "README.md").write_text(f"---\n{card.format(301)}---\n")
    with pytest.raises(RunError, match="300 rows came, its card says 301"):
        texts(source(folder))


def test_a_null_text_is_named_with_its_row(tmp_path: pathlib.Path) -> None:
    rows = pa.table({"text": ["a", None]})
    parquet.write_table(rows, tmp_path / "train.parquet")
    with pytest.raises(UserError, match=r'train, row 1 \(from 0\): "text" is null'):
        texts(source(tmp_path))


def test_a_run_says_that_a_name_is_to_be_prepared(tmp_path: pathlib.Path) -> None:
    config = small_config(data__task="text", data__length=16, data__path=f"hf:{tmp_path}")
    with pytest.raises(UserError, match="is to be prepared first"):
        resolve(config).check()


def test_a_folder_is_prepared_with_the_sizes_and_hashes_of_its_files(
    tmp_path: pathlib.Path,
) -> None:
    folder = write_dataset(tmp_path / "d")
    config = small_config(
        data__task="text",
        data__length=16,
        data__path=f"hf:{folder}",
        data__train_files="train",
        data__validation_files="",
        prepare__workers=1,
    )
    manifest = preparation.prepare(config, epath.Path(tmp_path / "out"))
    entries = manifest.recipe["splits"]["train"]["sources"]
    assert [entry["file"] for entry in entries] == [f"train-{i}.parquet" for i in range(3)]
    assert entries[0]["sha256"] == sha256(epath.Path(folder / "train-0.parquet"))
    assert entries[0]["revision"] is None
    counts = manifest.splits["train"]["components"]
    assert {name: of["documents"] for name, of in counts.items()} == {"A": 150, "B": 150}


# As a user's command, but for how long it waits before it tries again.
PREPARE = """
import sys, time
import datasets
time.sleep = lambda seconds: None
datasets.config.STREAMING_READ_MAX_RETRIES = 1
from looped_jax import prepare
from looped_jax.config import cli
cli.run(prepare.main, prepare._FLAGS, prints_only=False)
"""
EXPERIMENT = """
from looped_jax.config import default_config

def get_config():
    config = default_config()
    config.data.update(task="text", length=16, train_files="train[20:]")
    config.data.update(validation_files="")
    config.prepare.update(block_kb=1, shards=2, workers=1)
    return config
"""


@contextlib.contextmanager
def fake_hub(folder: pathlib.Path) -> Iterator[dict[str, str]]:
    """The environment in which the hub is `folder`."""
    program = [sys.executable, str(ROOT / "tests/data/fake_hub.py"), str(folder)]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as hub:
        assert hub.stdout is not None
        endpoint = f"http://127.0.0.1:{hub.stdout.readline().strip()}"
        try:
            yield {
                "HF_ENDPOINT": endpoint,
                "HF_HOME": str(folder / "_home"),
                "HF_HUB_OFFLINE": "0",
            }
        finally:
            hub.terminate()


def test_a_dataset_of_the_hub_is_pinned_and_gone_on_with_when_its_connection_failed(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = tmp_path / "hub"
    repo = write_dataset(
        hub / "org" / "mini", card="configs:\n- config_name: all\n  data_files: '*'\n"
    )
    (repo / "README.md").write_text("---\nlicense: other\n---\n")
    (tmp_path / "e.py").write_text(EXPERIMENT)

    def prepare(name: str, output: str) -> subprocess.CompletedProcess:
        arguments = ["--config=e.py", f"--config.data.path=hf:{name}", f"--output={output}"]
        program = [sys.executable, "-c", PREPARE, *arguments]
        return subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, timeout=200)

    def log() -> str:
        asked = (hub / "_log").read_text()
        (hub / "_log").unlink()
        return asked

    with fake_hub(hub) as environment:
        for key, value in {**environment, "PYTHONPATH": str(ROOT)}.items():
            monkeypatch.setenv(key, value)
        # What says which columns there are, and two data files.
        (hub / "_broken").write_text("3")
        done = prepare("org/mini", "cut")
        assert done.returncode == 1, done.stderr
        last = done.stderr.strip().splitlines()[-1]
        assert "hf:org/mini train[20:]: the connection fails" in last
        assert "start the same command again" in last
        assert not (tmp_path / "cut" / "manifest.json").exists()
        (hub / "_broken").unlink()
        log()
        assert prepare("org/mini", "cut").returncode == 0
        again = log()
        assert prepare("org/mini", "whole").returncode == 0
        anew = log()
        # Of the first file the columns alone: its rows are packed.
        assert again.count("train-0.parquet bytes") == 1
        assert anew.count("train-0.parquet bytes") == 2
        assert anew.count("train-2.parquet bytes") == again.count("train-2.parquet bytes") == 1
        for path in (tmp_path / "whole").iterdir():
            assert path.read_bytes() == (tmp_path / "cut" / path.name).read_bytes()
        recipe = json.loads((tmp_path / "whole" / "manifest.json").read_text())["recipe"]
        entry = recipe["splits"]["train"]["sources"][1]
        assert entry["file"] == f"hf://datasets/org/mini@{entry['revision']}/train-1.parquet"
        assert len(entry["revision"]) == 40
        # By its commit it is the same; a newer one is another preparation.
        assert prepare(f"org/mini@{entry['revision']}", "whole").returncode == 0
        (repo / "train-3.parquet").write_bytes((repo / "train-0.parquet").read_bytes())
        done = prepare("org/mini", "whole")
        assert done.returncode == 2 and "the same content" in done.stderr
        (repo / "train-3.parquet").unlink()
        (repo / "README.md").write_text("---\nlicense: mit\n---\n")
        done = prepare("org/mini", "whole")
        assert done.returncode == 2 and "holds another preparation" in done.stderr
        assert "revision" in done.stderr or "hf://datasets" in done.stderr
        done = prepare("org/mini@abc", "no")
        assert done.returncode == 2, done.stderr
        assert "Revision 'abc' doesn't exist" in done.stderr.strip().splitlines()[-1]
        assert not (tmp_path / "no").exists()
    done = prepare("org/mini", "no")  # The hub is gone.
    assert done.returncode == 1, done.stderr
    assert "the connection fails" in done.stderr.strip().splitlines()[-1]
    assert not (tmp_path / "no").exists()
