import gzip
import json
import pathlib
from collections import Counter

import numpy as np
import pytest
import zstandard
from etils import epath
from hypothesis import given
from hypothesis import strategies as st

from looped_jax.data.documents import (
    UNNAMED,
    Document,
    Shards,
    Turn,
    bad_lines,
    cut_blocks,
    parse,
    skipped,
)
from looped_jax.errors import UserError

DOCUMENTS = ["First document.", "Zweites Dokument: ä ö ü ⊗", "", "a\nb"]


def lines(documents: list[str]) -> bytes:
    return "".join(json.dumps({"text": d, "meta": {}}) + "\n" for d in documents).encode()


def write_zst(path: pathlib.Path, content: bytes) -> pathlib.Path:
    path.write_bytes(zstandard.ZstdCompressor().compress(content))
    return path


def texts(*paths: pathlib.Path, size: int = 1 << 20) -> list[str]:
    blocks = Shards(tuple(map(epath.Path, paths))).blocks(size)
    return [document.text for block in blocks for document in parse(block)]


def test_shards_are_read_in_every_format(tmp_path: pathlib.Path) -> None:
    content = lines(DOCUMENTS)
    plain, gz = tmp_path / "a.jsonl", tmp_path / "a.jsonl.gz"
    plain.write_bytes(content)
    gz.write_bytes(gzip.compress(content))
    two_frames = tmp_path / "b.jsonl.zst"
    compress = zstandard.ZstdCompressor().compress
    two_frames.write_bytes(compress(content[:40]) + compress(content[40:]))
    for path in (plain, gz, two_frames, write_zst(tmp_path / "a.jsonl.zst", content)):
        assert texts(path) == DOCUMENTS


def test_a_last_line_without_its_newline_is_read(tmp_path: pathlib.Path) -> None:
    assert texts(write_zst(tmp_path / "a.jsonl.zst", lines(DOCUMENTS)[:-1])) == DOCUMENTS


def test_a_document_names_its_component(tmp_path: pathlib.Path) -> None:
    records = [
        {"text": "a", "meta": {"pile_set_name": "ArXiv"}},
        {"text": "b", "meta": {}},
        {"text": "c"},
    ]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    (block,) = Shards((epath.Path(path),)).blocks(1 << 20)
    names = [UNNAMED, UNNAMED]
    expected = [
        Document((Turn("", text),), component)
        for text, component in zip("abc", ["ArXiv", *names], strict=True)
    ]
    assert list(parse(block)) == expected


def test_a_document_may_have_a_prompt_or_several_in_turns(tmp_path: pathlib.Path) -> None:
    records = [
        {"prompt": "2+3=", "text": "5"},
        {
            "turns": [
                {"prompt": "2+3=", "text": "5"},
                {"text": ", "},
                {"prompt": "5+5=", "text": ""},
            ]
        },
    ]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    (block,) = Shards((epath.Path(path),)).blocks(1 << 20)
    one, several = parse(block)
    assert one.turns == (Turn("2+3=", "5"),)
    assert several.turns == (*one.turns, Turn("", ", "), Turn("5+5=", ""))
    assert several.text == "2+3=5, 5+5="


@given(
    st.lists(st.binary(max_size=9).map(lambda b: b.replace(b"\n", b"")), min_size=1, max_size=12),
    st.integers(1, 20),
    st.integers(1, 7),
)
def test_blocks_are_the_same_however_the_content_arrives(
    content: list[bytes], size: int, chunk: int
) -> None:
    whole = b"".join(line + b"\n" for line in content)
    arriving = (whole[i : i + chunk] for i in range(0, len(whole), chunk))
    blocks = list(cut_blocks(arriving, "x", size))
    assert blocks == list(cut_blocks(iter([whole]), "x", size))
    assert b"".join(block.content for block in blocks) == whole
    for block in blocks[:-1]:
        # Whole lines, and no more of them than it takes.
        assert block.content.endswith(b"\n")
        assert len(block.content) >= size
        assert block.content[:-1].rpartition(b"\n")[0].__len__() + 1 <= size
    at = 1
    for block in blocks:
        assert block.first_line == at
        at += block.content.count(b"\n")


def test_what_was_read_adds_up_to_the_files_size(tmp_path: pathlib.Path) -> None:
    path = write_zst(tmp_path / "a.jsonl.zst", lines(DOCUMENTS * 100))
    blocks = list(Shards((epath.Path(path),)).blocks(200))
    assert len(blocks) > 10
    assert sum(block.read for block in blocks) == path.stat().st_size


BAD_LINES = {
    b'{"text": "\xff"}\n': "line 5: not UTF-8 at its byte 10",
    b'{"text": "a"\n': "line 5: not JSON",
    b'{"txt": "a"}\n': 'line 5: no "text" field with a string',
    b'"text"\n': 'line 5: no "text" field with a string',
    b'{"text": "a", "prompt": 1}\n': 'line 5: "prompt" is not a string',
    b'{"text": "\\ud800"}\n': "line 5: it holds a lone surrogate",
    b'{"turns": [{"text": "a"}, {"text": "\\ud800"}]}\n': "line 5: it holds a lone surrogate",
    b'{"text": "a", "meta": {"pile_set_name": "\\ud800"}}\n': "line 5: it holds a lone surrogate",
    b'{"text": "a", "n": ' + b"1" * 5000 + b"}\n": "line 5: a number with too many digits",
    b'{"text": "a", "n": ' + b"[" * 100_000 + b"}\n": "line 5: nested too deeply",
    b'{"turns": []}\n': 'line 5: "turns" is not a list of {"prompt": ',
    b'{"turns": "a"}\n': 'line 5: "turns" is not a list of {"prompt": ',
    b'{"turns": [{"text": "a"}, "b"]}\n': 'no "text" field with a string in each of "turns"',
    b'{"turns": [{"text": "a"}], "text": "b"}\n': 'line 5: "turns" and "text" or "prompt" beside',
    "\ufeff{}\n".encode(): "line 5: not JSON (Unexpected UTF-8 BOM",
}


@pytest.mark.parametrize("size", [1, 1 << 20])
@pytest.mark.parametrize("line", BAD_LINES, ids=lambda line: line[:40].decode(errors="replace"))
def test_a_bad_line_is_named(line: bytes, size: int, tmp_path: pathlib.Path) -> None:
    shard = write_zst(tmp_path / "bad.jsonl.zst", lines(DOCUMENTS) + line)
    with pytest.raises(UserError) as error:
        texts(shard, size=size)
    assert str(error.value).startswith(f"{shard}, ")
    assert BAD_LINES[line] in str(error.value)


@pytest.mark.parametrize("size", [1, 1 << 20])
def test_blank_lines_and_a_byte_order_mark_are_skipped_and_counted(
    size: int, tmp_path: pathlib.Path
) -> None:
    first, *others = lines(DOCUMENTS).splitlines(keepends=True)
    content = b"\xef\xbb\xbf\n" + first + b"\n \t\r\n" + b"".join(others) + b"\r\n\n"
    path = write_zst(tmp_path / "a.jsonl.zst", content)
    assert texts(path, size=size) == DOCUMENTS
    blocks = Shards((epath.Path(path),)).blocks(size)
    counts = sum((skipped(block) for block in blocks), Counter())
    assert counts == {"blank_lines": 5, "byte_order_marks": 1}
    # What is wrong after them stands where an editor says it does.
    write_zst(path, content + b"{}\n")
    with pytest.raises(UserError, match="line 10: no"):
        texts(path, size=size)


def test_all_bad_lines_of_a_block_are_named(tmp_path: pathlib.Path) -> None:
    path = write_zst(tmp_path / "a.jsonl.zst", lines(DOCUMENTS[:1]) + b"\n".join(BAD_LINES))
    (block,) = Shards((epath.Path(path),)).blocks(1 << 20)
    said = bad_lines(block)
    # Of lines that end in a newline, the empty ones between are skipped.
    assert len(said) == len(BAD_LINES)
    for number, (message, why) in enumerate(zip(said, BAD_LINES.values(), strict=True)):
        expected = why.replace("line 5", f"line {2 + 2 * number}")
        assert expected in message


def test_a_window_of_any_size_is_read(tmp_path: pathlib.Path) -> None:
    """As `zstd --long=31` writes them: refused by default, with words of too little memory."""
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=31)
    stream = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(stream.compress(lines(DOCUMENTS)) + stream.flush())
    assert zstandard.get_frame_parameters(path.read_bytes()).window_size == 1 << 31
    assert texts(path) == DOCUMENTS


def test_a_damaged_gzip_file_is_named_wherever_it_is_damaged(tmp_path: pathlib.Path) -> None:
    rng = np.random.default_rng(0)
    whole = gzip.compress(lines(["".join(map(chr, rng.integers(97, 123, 4000)))] * 100))
    gz = tmp_path / "a.jsonl.gz"
    for at in (0, 5, 12, 40, len(whole) // 2, len(whole) - 6, len(whole) - 1):
        gz.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        try:
            read = texts(gz)
        except UserError as error:
            assert "corrupt or truncated gzip data" in str(error)
        else:
            assert at == 5 and len(read) == 100  # The time of its making.


def test_an_empty_shard_is_named(tmp_path: pathlib.Path) -> None:
    nothing = tmp_path / "nothing.jsonl.zst"
    nothing.touch()
    for shard in (nothing, write_zst(tmp_path / "empty.jsonl.zst", b"")):
        with pytest.raises(UserError, match=f"{shard.name}: empty"):
            texts(shard)


def test_a_corrupt_or_truncated_shard_is_named_with_the_line_reached(
    tmp_path: pathlib.Path,
) -> None:
    rng = np.random.default_rng(0)
    many = ["".join(map(chr, rng.integers(97, 123, 4000))) for _ in range(400)]
    shard = write_zst(tmp_path / "cut.jsonl.zst", lines(many))
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"cut.jsonl.zst, after line [1-9]\d*: truncated zstd data"):
        texts(shard)
    shard.write_bytes(b"this is not zstd at all" * 10)
    with pytest.raises(UserError, match="after line 0: corrupt zstd data"):
        texts(shard)
    packed = gzip.compress(lines(many))
    gz = tmp_path / "cut.jsonl.gz"
    gz.write_bytes(packed[: len(packed) // 2])
    with pytest.raises(UserError, match="corrupt or truncated gzip data"):
        texts(gz)


def test_what_a_pattern_matches_is_a_file(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "data[1]*"  # What stands in a path is no pattern.
    folder.mkdir()
    (folder / "train-0.jsonl").write_bytes(lines(DOCUMENTS))
    found = Shards.find(str(folder), "train-*")
    assert [path.name for path in found.paths] == ["train-0.jsonl"]
    (folder / "train-1.jsonl").symlink_to(tmp_path / "gone")
    with pytest.raises(
        UserError, match=r"train-1.jsonl, which train-\* matches, is a link to what"
    ):
        Shards.find(str(folder), "train-*")
    (folder / "train-1.jsonl").unlink()
    (folder / "train-1.jsonl").mkdir()
    with pytest.raises(UserError, match=r"train-1.jsonl, which train-\* matches, is a folder"):
        Shards.find(str(folder), "train-*")


def test_a_missing_folder_or_shard_says_what_to_do(tmp_path: pathlib.Path) -> None:
    for path, reason in (
        ("", "is not set"),
        (str(tmp_path / "no"), "is not a folder"),
        (str(tmp_path), "no train-"),
    ):
        with pytest.raises(UserError, match=reason) as error:
            Shards.find(path, "train-*.jsonl.zst")
        assert "docs/data.md" in str(error.value)
