"""Plain text as a source: files, or what a line parts, are documents."""

import gzip
import pathlib

import numpy as np
import pytest
import zstandard
from etils import epath
from helpers import small_config
from hypothesis import given
from hypothesis import strategies as st

from looped_jax.data import plain_text, preparation
from looped_jax.data.documents import Shards, parse
from looped_jax.data.records import UNNAMED, Reading
from looped_jax.data.run_data import resolve
from looped_jax.errors import UserError


def documents(folder: pathlib.Path, pattern: str, separator: str = "") -> list[tuple[str, str]]:
    """Component and text of each."""
    shards = Shards.find(str(folder), pattern, Reading(separator=separator))
    blocks = list(shards.blocks(1 << 20))
    assert len(blocks) == 1
    return [(d.component, d.text) for d in parse(blocks[0])]


def test_a_file_is_a_document_and_its_folder_the_component(tmp_path: pathlib.Path) -> None:
    (tmp_path / "books" / "old").mkdir(parents=True)
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfFirst.\r\n\r\n  \xc3\xa4\n")
    (tmp_path / "books" / "b.txt.gz").write_bytes(gzip.compress(b"no end of line"))
    (tmp_path / "books" / "old" / "c.txt.zst").write_bytes(zstandard.compress(b"\n\nc\n"))
    assert documents(tmp_path, "a*") == [(UNNAMED, "First.\r\n\r\n  ä\n")]
    assert documents(tmp_path, "*/*.txt*") == [("books", "no end of line")]
    assert documents(tmp_path, "*/*/*.txt*") == [("books", "\n\nc\n")]
    with pytest.raises(UserError, match=r"\*\* is not a pattern here"):
        documents(tmp_path, "**/*.txt*")


def test_small_files_share_blocks_and_a_block_names_its_first_and_last(
    tmp_path: pathlib.Path,
) -> None:
    for name in "abcd":
        (tmp_path / f"{name}.txt").write_text(name * 30)
    blocks = list(Shards.find(str(tmp_path), "*.txt").blocks(100))
    assert [len(list(parse(block))) for block in blocks] == [3, 1]
    assert blocks[0].where == f"{tmp_path}/a.txt … {tmp_path}/c.txt"
    assert blocks[1].where == f"{tmp_path}/d.txt"
    assert sum(block.read for block in blocks) == 4 * 30


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_line_parts_documents(end: str, tmp_path: pathlib.Path) -> None:
    lines = ["<|end|>", "one", "", "still one", "<|end|>", " <|end|>", "two<|end|>", "<|end|>", ""]
    (tmp_path / "a.txt").write_bytes(end.join(lines).encode())
    assert documents(tmp_path, "a.txt", "<|end|>") == [
        (UNNAMED, f"one{end}{end}still one"),
        (UNNAMED, f" <|end|>{end}two<|end|>"),
    ]
    (tmp_path / "b.txt").write_bytes(end.join(["one", "two", "", " ", "three"]).encode())
    assert documents(tmp_path, "b.txt", "blank") == [(UNNAMED, f"one{end}two"), (UNNAMED, "three")]


@given(st.binary(max_size=40), st.integers(1, 5), st.sampled_from(["", "blank", "a"]))
def test_documents_do_not_depend_on_how_the_content_arrives(
    content: bytes, size: int, separator: str
) -> None:
    content = content.replace(b"\xff", b"\n").decode("ascii", "ignore").encode()
    pieces = [content[i : i + size] for i in range(0, len(content), size)]

    def read(chunks: list[bytes]) -> list[str] | str:
        try:
            return list(plain_text.texts(iter(chunks), "x", separator))
        except UserError as error:
            return str(error)

    assert read(pieces) == read([content])
    if not separator and content.decode().strip():  # Of more than the blanks of ASCII.
        assert read(pieces) == [content.decode()]


def test_what_is_no_text_is_named(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    monkeypatch.setattr(plain_text, "MOST", 100)
    for content, separator, message in (
        (b"one\ntwo \xff\n", "", "a.txt, line 2: not UTF-8 at its byte 4"),
        (b"", "", "a.txt: empty"),
        (b" \n\n", "blank", "a.txt: empty"),
        (b"x" * 101, "", "a.txt, line 1: a document of more than"),
        (b"x\n" * 101, "###", "config.data.document_separator"),
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match=message):
            documents(tmp_path, "a.txt", separator)
    path.with_suffix(".txt.gz").write_bytes(gzip.compress(b"some text " * 99)[:-9])
    with pytest.raises(UserError, match=r"a.txt.gz, after line 0: corrupt or truncated gzip data"):
        documents(tmp_path, "a.txt.gz")


def test_plain_text_is_prepared_and_read_without_preparing(tmp_path: pathlib.Path) -> None:
    for name, text in (("x/a", "first"), ("x/b", "second"), ("y/c", "third")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.txt").write_text(text)
    config = small_config(
        data__task="text",
        data__length=16,
        data__path=str(tmp_path),
        data__train_files="*/*.txt",
        data__validation_files="",
        prepare__workers=1,
    )
    manifest = preparation.prepare(config, epath.Path(tmp_path / "out"))
    assert manifest.splits["train"]["components"]["x"]["documents"] == 2
    with config.unlocked():
        prepared = config.copy_and_resolve_references()
    prepared.data.path = str(tmp_path / "out")
    for each in (config, prepared):
        source = resolve(each).source("train")
        assert source.components == ("x", "y")
        rows = source.rows(np.arange(source.num_rows))
        assert rows["target_bytes"].sum() == len("firstsecondthird")


def test_another_reading_is_another_preparation(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a.txt").write_text("one\n###\ntwo\n")

    def config(path: pathlib.Path, separator: str):
        return small_config(
            data__task="text",
            data__length=16,
            data__path=str(path),
            data__train_files="a.txt",
            data__validation_files="",
            data__document_separator=separator,
            prepare__workers=1,
        )

    out = epath.Path(tmp_path / "out")
    manifest = preparation.prepare(config(tmp_path, "###"), out)
    assert manifest.recipe["reading"]["separator"] == "###"
    with pytest.raises(UserError, match="holds another preparation"):
        preparation.prepare(config(tmp_path, "blank"), out)
    unprepared = [resolve(config(tmp_path, s)).source("train").fingerprint for s in ("", "###")]
    assert unprepared[0] != unprepared[1]
