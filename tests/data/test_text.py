import gzip
import json
import pathlib

import numpy as np
import pytest
import zstandard
from etils import epath
from hypothesis import given
from hypothesis import strategies as st

from looped_jax.config import UserError
from looped_jax.data.rows import BOS, EOS
from looped_jax.data.text import (
    PackedText,
    byte_tokens,
    decode_bytes,
    find_shards,
    read_documents,
)

DOCUMENTS = ["First document.", "Zweites Dokument: ä ö ü ⊗", "", "a\nb"]
texts = st.text(alphabet=st.characters(exclude_categories=("Cs",)), max_size=30)


def lines(documents: list[str]) -> bytes:
    return "".join(json.dumps({"text": d, "meta": {}}) + "\n" for d in documents).encode()


def write_zst(path: pathlib.Path, content: bytes) -> epath.Path:
    path.write_bytes(zstandard.ZstdCompressor().compress(content))
    return epath.Path(path)


@given(texts)
def test_bytes_decode_to_the_text_they_came_from(text: str) -> None:
    assert decode_bytes(byte_tokens(text)) == text


@given(st.lists(texts, min_size=1, max_size=8), st.integers(2, 20))
def test_packing_predicts_every_token_exactly_once_and_in_order(
    documents: list[str], length: int
) -> None:
    source = PackedText.from_documents(iter(documents), length)
    rows = source.rows(np.arange(source.num_rows))
    real = rows["loss_weights"] > 0
    expected = [[BOS, *byte_tokens(text), EOS] for text in documents]
    assert rows["targets"][real].tolist() == [t for d in expected for t in d[1:]]
    assert rows["tokens"][real].tolist() == [t for d in expected for t in d[:-1]]
    # Padding only at the end of the last row, and it is segment 0.
    assert real.reshape(-1).tolist() == sorted(real.reshape(-1).tolist(), reverse=True)
    np.testing.assert_array_equal(rows["segment_ids"] > 0, real)


@given(st.lists(texts, min_size=1, max_size=8), st.integers(2, 20))
def test_segments_are_documents_and_positions_count_within_them(
    documents: list[str], length: int
) -> None:
    source = PackedText.from_documents(iter(documents), length)
    rows = source.rows(np.arange(source.num_rows))
    for tokens, segments, positions in zip(
        rows["tokens"], rows["segment_ids"], rows["positions"], strict=True
    ):
        starts = np.flatnonzero((tokens == BOS) & (segments > 0))
        for at in range(length):
            if segments[at] == 0:
                continue
            first = max([0, *[s for s in starts if s <= at]])
            assert positions[at] == at - first
            assert segments[at] == segments[0] + sum(0 < s <= at for s in starts)


def test_shards_are_read_in_every_format(tmp_path: pathlib.Path) -> None:
    content = lines(DOCUMENTS)
    plain, gz = tmp_path / "a.jsonl", tmp_path / "a.jsonl.gz"
    plain.write_bytes(content)
    gz.write_bytes(gzip.compress(content))
    two_frames = tmp_path / "b.jsonl.zst"
    compress = zstandard.ZstdCompressor().compress
    two_frames.write_bytes(compress(content[:40]) + compress(content[40:]))
    for path in (plain, gz, two_frames, write_zst(tmp_path / "a.jsonl.zst", content)):
        assert list(read_documents(epath.Path(path))) == DOCUMENTS


def test_a_last_line_without_its_newline_is_read(tmp_path: pathlib.Path) -> None:
    shard = write_zst(tmp_path / "a.jsonl.zst", lines(DOCUMENTS)[:-1])
    assert list(read_documents(shard)) == DOCUMENTS


BAD_LINES = {
    b'{"text": "\xff"}\n': "line 5: not UTF-8 at byte 10 of the line",
    b'{"text": "a"\n': "line 5: not JSON",
    b'{"txt": "a"}\n': 'line 5: no "text" field with a string',
    b'"text"\n': 'line 5: no "text" field with a string',
    b'{"text": "\\ud800"}\n': "line 5: text holds a lone surrogate",
}


@pytest.mark.parametrize("line", BAD_LINES)
def test_a_bad_line_is_named(line: bytes, tmp_path: pathlib.Path) -> None:
    shard = write_zst(tmp_path / "bad.jsonl.zst", lines(DOCUMENTS) + line)
    with pytest.raises(UserError) as error:
        list(read_documents(shard))
    assert str(error.value).startswith(f"{shard}, ")
    assert BAD_LINES[line] in str(error.value)


def test_an_empty_shard_is_named(tmp_path: pathlib.Path) -> None:
    nothing = tmp_path / "nothing.jsonl.zst"
    nothing.touch()
    for shard in (nothing, write_zst(tmp_path / "empty.jsonl.zst", b"")):
        with pytest.raises(UserError, match=f"{shard.name}: empty"):
            list(read_documents(epath.Path(shard)))


def test_a_corrupt_or_truncated_shard_is_named_with_the_line_reached(
    tmp_path: pathlib.Path,
) -> None:
    rng = np.random.default_rng(0)
    many = ["".join(map(chr, rng.integers(97, 123, 4000))) for _ in range(400)]
    shard = write_zst(tmp_path / "cut.jsonl.zst", lines(many))
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"cut.jsonl.zst, after line \d+: truncated zstd data"):
        list(read_documents(shard))
    shard.write_bytes(b"this is not zstd at all" * 10)
    with pytest.raises(UserError, match="after line 0: corrupt zstd data"):
        list(read_documents(shard))
    packed = gzip.compress(lines(many))
    gz = epath.Path(tmp_path / "cut.jsonl.gz")
    gz.write_bytes(packed[: len(packed) // 2])
    with pytest.raises(UserError, match="corrupt or truncated gzip data"):
        list(read_documents(gz))


def test_a_missing_folder_or_shard_says_what_to_do(tmp_path: pathlib.Path) -> None:
    for path, reason in (
        ("", "is not set"),
        (str(tmp_path / "no"), "is not a folder"),
        (str(tmp_path), "no train-"),
    ):
        with pytest.raises(UserError, match=reason) as error:
            find_shards(path, "train-*.jsonl.zst")
        assert "docs/data.md" in str(error.value)
