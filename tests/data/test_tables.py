"""Parquet and Arrow files give the documents that JSON lines of the same content give."""

import functools
import json
import pathlib
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from etils import epath
from helpers import small_config
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from looped_jax.data import preparation
from looped_jax.data.documents import Shards, parse
from looped_jax.data.records import PILE, UNNAMED, Document, Reading, Turn
from looped_jax.data.run_data import resolve
from looped_jax.errors import UserError

pa = pytest.importorskip("pyarrow", reason="tables are read with the extra `parquet`")
feather = pytest.importorskip("pyarrow.feather")
ipc = pytest.importorskip("pyarrow.ipc")
parquet = pytest.importorskip("pyarrow.parquet")

RECORDS = [
    {"text": f"Text {i} ä⊗\n" * (i % 7), "meta": {"pile_set_name": ("A", "B")[i % 2]}}
    for i in range(50)
]


def documents(*paths: pathlib.Path, reading: Reading = PILE, size: int = 1 << 20) -> list:
    shards = Shards(tuple(map(epath.Path, paths)), reading)
    return [document for block in shards.blocks(size) for document in parse(block)]


def write_lines(path: pathlib.Path, records: list[dict[str, Any]]) -> pathlib.Path:
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records))
    return path


def write_table(path: pathlib.Path, table: Any, **options: Any) -> pathlib.Path:
    """As its suffix says; `.stream.arrow` is the IPC stream format."""
    if path.suffix == ".parquet":
        parquet.write_table(table, path, **options)
    elif path.suffix == ".feather":
        feather.write_feather(table, path, **options)
    else:
        new = ipc.new_stream if ".stream" in path.suffixes else ipc.new_file
        with new(path, table.schema) as writer:
            writer.write_table(table, **options)
    return path


def said(path: pathlib.Path, **options: Any) -> str:
    with pytest.raises(UserError) as error:
        documents(path, **options)
    message = str(error.value)
    assert message.startswith(str(path)) and "\n" not in message
    return message


TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
NAME = st.none() | st.sampled_from(["A", "B ⊗"])
WRITINGS = st.sampled_from(
    [
        *[
            ("a.parquet", {"compression": c, "use_dictionary": d, "row_group_size": n})
            for c in ("none", "snappy", "zstd", "gzip")
            for d in (False, True)
            for n in (1, 3, 100)
        ],
        ("a.arrow", {"max_chunksize": 2}),
        ("a.stream.arrow", {"max_chunksize": 2}),
        ("a.feather", {"compression": "lz4", "chunksize": 3}),
        ("a.feather", {"compression": "zstd"}),
    ]
)
STRINGS = ("string", "large_string", "string_view", "dictionary")
METAS = ("struct", "json", "none")


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(TEXT, NAME, TEXT), min_size=1, max_size=9),
    WRITINGS,
    st.sampled_from(STRINGS),
    st.sampled_from(METAS),
    st.integers(1, 300),
)
def test_a_table_has_the_documents_of_the_same_lines(
    tmp_path: pathlib.Path,
    rows: list[tuple[str, str | None, str]],
    writing: tuple[str, dict[str, Any]],
    strings: str,
    meta: str,
    size: int,
) -> None:
    name, options = writing
    kind = pa.dictionary(pa.int32(), pa.string()) if strings == "dictionary" else None
    kind = kind or getattr(pa, strings)()
    if strings == "string_view" and name.endswith(".parquet"):
        kind = pa.large_string()  # pyarrow writes no views to Parquet.
    columns = {
        "id": pa.array(range(len(rows))),
        "text": pa.array([text for text, _, _ in rows], pa.string()).cast(kind),
        "prompt": pa.array([prompt or None for _, _, prompt in rows]).cast(pa.string()),
    }
    metas = [{"pile_set_name": name, "n": 1} for _, name, _ in rows]
    if meta == "struct":
        struct = pa.struct({"n": pa.int64(), "pile_set_name": pa.string()})
        columns["meta"] = pa.array(metas, struct)
    elif meta == "json":
        columns["meta"] = pa.array([json.dumps(m) for m in metas])
    table = write_table(tmp_path / name, pa.table(columns), **options)
    expected = [
        Document((Turn(prompt, text),), (meta != "none" and name) or UNNAMED)
        for text, name, prompt in rows
    ]
    assert documents(table, size=size) == expected
    records = []
    for i, (text, _, prompt) in enumerate(rows):
        records.append({"id": i, "text": text, "prompt": prompt})
        if meta != "none":
            records[-1]["meta"] = json.dumps(metas[i]) if meta == "json" else metas[i]
    assert documents(write_lines(tmp_path / "a.jsonl", records)) == expected


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.stream.arrow", "a.feather"])
def test_prepared_rows_are_the_same_bytes_as_those_of_lines(
    name: str, tmp_path: pathlib.Path
) -> None:
    shards = {}
    for kind in (name, "a.jsonl"):
        folder = tmp_path / f"from_{kind}"
        folder.mkdir()
        if kind == name:
            write_table(folder / name, pa.Table.from_pylist(RECORDS))
        else:
            write_lines(folder / kind, RECORDS)
        config = small_config(
            data__task="text",
            data__length=16,
            data__path=str(folder),
            data__train_files="a.*",
            data__validation_files="",
            prepare__block_kb=1,
            prepare__workers=1,
            prepare__shards=2,
        )
        preparation.prepare(config, epath.Path(folder / "out"))
        shards[kind] = {p.name: p.read_bytes() for p in (folder / "out").glob("*.array_record")}
        # Without preparing too.
        assert resolve(config).source("train").components == ("A", "B")
    assert len(shards[name]) == 2
    assert shards[name] == shards["a.jsonl"]


def test_what_was_read_adds_up_to_the_files_size(tmp_path: pathlib.Path) -> None:
    for name in ("a.parquet", "a.arrow", "a.stream.arrow"):
        path = tmp_path / name
        write_table(path, pa.Table.from_pylist(RECORDS * 20))
        blocks = list(Shards((epath.Path(path),)).blocks(2000))
        assert len(blocks) > 5
        assert path.stat().st_size - 8 <= sum(b.read for b in blocks) <= path.stat().st_size


def test_other_columns_are_named_in_the_config(tmp_path: pathlib.Path) -> None:
    rows = [
        {"content": {"raw": "a"}, "dump": "x", "score": 3, "q": "A: ", "a.b": "i"},
        {"content": {"raw": "b"}, "dump": None, "score": 4, "q": None, "a.b": "j"},
    ]
    for path in (
        write_table(tmp_path / "a.parquet", pa.Table.from_pylist(rows)),
        write_table(tmp_path / "a.arrow", pa.Table.from_pylist(rows)),
        write_lines(tmp_path / "a.jsonl", rows),
    ):
        read = functools.partial(documents, path)
        by_dump = read(reading=Reading("content.raw", "", "dump"))
        assert by_dump == [Document((Turn("", "a"),), "x"), Document((Turn("", "b"),), UNNAMED)]
        by_score = read(reading=Reading("content.raw", "q", "score"))
        assert by_score == [Document((Turn("A: ", "a"),), "3"), Document((Turn("", "b"),), "4")]
        assert [d.component for d in read(reading=Reading("content.raw", "", "a.b"))] == ["i", "j"]
        assert [d.component for d in read(reading=Reading("content.raw", "", ""))] == [UNNAMED] * 2


def test_turns_are_a_list_of_structs(tmp_path: pathlib.Path) -> None:
    turns = [{"prompt": "2+3=", "text": "5"}, {"prompt": None, "text": ", "}]
    path = write_table(tmp_path / "a.parquet", pa.Table.from_pylist([{"turns": turns}]))
    assert documents(path) == [Document((Turn("2+3=", "5"), Turn("", ", ")), UNNAMED)]


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_a_column_that_is_missing_or_holds_no_text_is_named_with_those_there(
    suffix: str, tmp_path: pathlib.Path
) -> None:
    table = pa.table({"texts": ["a"], "n": [1.5], "meta": [{"name": "x"}]})
    path = write_table(tmp_path / f"a{suffix}", table)
    message = said(path)
    assert "no 'text' (config.data.text_column)" in message
    assert "it has texts, n, meta, meta.name; did you mean 'texts'?" in message
    assert "'n' (config.data.text_column) is of type double" in said(path, reading=Reading("n"))
    message = said(path, reading=Reading("texts", "", "meta.names"))
    assert "no 'meta.names' (config.data.component_column)" in message
    assert "did you mean 'meta.name'?" in message
    message = said(path, reading=Reading("texts", "", "n"))
    assert "'n' (config.data.component_column) is of type double" in message


def test_a_line_without_a_column_is_named_with_those_there(tmp_path: pathlib.Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{"text": "a", "dump": "x"}, {"text": "b"}])
    message = said(path, reading=Reading(component="dump"))
    assert "line 2: no 'dump' (config.data.component_column); it has text" in message
    message = said(path, reading=Reading("txt"))
    assert 'line 1: no "txt" field' in message and "did you mean 'text'?" in message


def test_row_groups_with_fewer_rows_than_the_file_are_refused(tmp_path: pathlib.Path) -> None:
    table = pa.Table.from_pylist(RECORDS[:50] * 2)
    path = write_table(tmp_path / "a.parquet", table, row_group_size=77)
    whole = path.read_bytes()
    # 77 is written as 0x9a 0x01: of the group and of each of its columns. 76 is 0x98 0x01.
    metadata = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    messages = []
    for at in range(metadata, len(whole) - 8):
        if whole[at : at + 2] == b"\x9a\x01":
            path.write_bytes(whole[:at] + b"\x98" + whole[at + 1 :])
            try:
                assert len(documents(path)) == 100
            except UserError as error:
                messages.append(str(error))
    assert any("its row groups have 99 rows, not 100" in message for message in messages), messages


def test_a_null_text_is_named_with_its_row_group_and_row(tmp_path: pathlib.Path) -> None:
    table = pa.table({"text": ["a", "b", "c", None, "e"]})
    path = write_table(tmp_path / "a.parquet", table, row_group_size=2)
    assert 'row group 1, its row 1 (both from 0): "text" is null' in said(path)
    path = write_table(tmp_path / "a.arrow", table, max_chunksize=2)
    assert 'record batch 1, its row 1 (both from 0): "text" is null' in said(path)


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.stream.arrow", "a.feather"])
def test_a_damaged_table_is_one_line_and_never_a_part(name: str, tmp_path: pathlib.Path) -> None:
    path = tmp_path / name
    table = pa.Table.from_pylist(RECORDS)
    options = {"max_chunksize": 10} if name.endswith(".arrow") else {}
    whole = write_table(path, table, **options).read_bytes()
    for size in {0, 1, 7, 8, *range(16, len(whole), 1 + len(whole) // 60), len(whole) - 8}:
        path.write_bytes(whole[:size])
        assert "empty" in said(path) or size
    path.write_bytes(b"this is no table" * 100)
    said(path)
    path.write_bytes(whole + b"more")
    if name != "a.stream.arrow":
        assert "corrupt or truncated" in said(path)
    else:
        assert "4 bytes behind" in said(path) or "no end-of-stream mark" in said(path)


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.stream.arrow", "a.feather"])
def test_wrong_bytes_are_one_line_or_all_rows(name: str, tmp_path: pathlib.Path) -> None:
    path = tmp_path / name
    whole = write_table(path, pa.Table.from_pylist(RECORDS)).read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(150):
        content = bytearray(whole)
        content[rng.integers(len(whole))] = rng.integers(256)
        path.write_bytes(content)
        try:
            # Without a checksum (pyarrow writes none) another letter is another letter.
            assert len(documents(path)) == len(RECORDS)
        except UserError as error:
            assert str(error).startswith(str(path)) and "\n" not in str(error)
            refused += 1
    assert refused > 20


def test_a_stream_that_ends_between_two_batches_is_truncated(tmp_path: pathlib.Path) -> None:
    table = pa.Table.from_pylist(RECORDS)
    path = write_table(tmp_path / "a.stream.arrow", table, max_chunksize=10)
    path.write_bytes(path.read_bytes()[:-8])
    assert "no end-of-stream mark" in said(path)


def test_text_that_is_not_utf_8_is_corrupt(tmp_path: pathlib.Path) -> None:
    binary = pa.array([b"good", b"\xff\xfe"])
    text = pa.Array.from_buffers(pa.string(), 2, binary.buffers())
    for name in ("a.parquet", "a.arrow"):
        path = write_table(tmp_path / name, pa.table({"text": text}))
        assert "0: corrupt or truncated (" in said(path) and "UTF8" in said(path)


def test_an_empty_table_is_named(tmp_path: pathlib.Path) -> None:
    for name in ("a.parquet", "a.arrow", "a.stream.arrow"):
        path = write_table(tmp_path / name, pa.table({"text": pa.array([], pa.string())}))
        assert said(path).endswith(": empty")


def test_memory_is_bounded_by_a_part_of_a_row_group(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "a.parquet"
    # One row group of 80 MB, beside a column that is not read.
    text = ["".join(map(str, range(i, i + 2000))) for i in range(10_000)]
    table = pa.table({"text": text, "other": text})
    parquet.write_table(table, path, row_group_size=1 << 20, use_dictionary=False)
    size = table.nbytes // 2
    del table, text
    program = (
        "import resource, sys; from etils import epath\n"
        "from looped_jax.data.documents import Shards, parse\n"
        "import pyarrow.parquet\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "blocks = Shards((epath.Path(sys.argv[1]),)).blocks(1 << 20)\n"
        "count = sum(1 for block in blocks for _ in parse(block))\n"
        "print(count, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    count, kilobytes = map(int, done.stdout.split())
    assert count == 10_000
    assert kilobytes << 10 < size / 2, f"{kilobytes >> 10} MB for {size >> 20} MB"
