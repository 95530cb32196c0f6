"""Real text: Pile-format JSON-lines shards -> byte tokens -> packed rows.

A shard is `*.jsonl.zst`, `*.jsonl.gz` or `*.jsonl`, one `{"text": …}` a line. A document
becomes `BOS bytes EOS`; its next-token pairs are laid end to end with those of the others and
cut into rows, so that every token is predicted exactly once: a document that does not fit
continues in the next row as a new segment, positions from 0 again.

This reads the shards into memory when a run starts, which suits up to some hundred MB.
"""

import dataclasses
import gzip
import json
from collections.abc import Iterator

import numpy as np
import zstandard
from etils import epath

from looped_jax.config import UserError
from looped_jax.data.rows import BOS, EOS, FIRST_FREE_ID, Rows

BYTE_VOCAB_SIZE = FIRST_FREE_ID + 256
_CHUNK = 1 << 20


def byte_tokens(text: str) -> np.ndarray:
    """UTF-8 bytes, each as FIRST_FREE_ID + byte."""
    return np.frombuffer(text.encode("utf-8"), dtype=np.uint8).astype(np.int32) + FIRST_FREE_ID


def decode_bytes(tokens: np.ndarray) -> str:
    """Inverse of byte_tokens; PAD, BOS and EOS have no text."""
    tokens = np.asarray(tokens)
    return (
        (tokens[tokens >= FIRST_FREE_ID] - FIRST_FREE_ID)
        .astype(np.uint8)
        .tobytes()
        .decode("utf-8", errors="replace")
    )


def find_shards(path: str, pattern: str) -> list[epath.Path]:
    """The shards below ``path`` that match, sorted; UserError if there are none."""
    how = (
        "set --config.data.path to a folder of Pile-format shards (*.jsonl.zst, one "
        '{"text": …} a line; docs/data.md says where to get or how to make them)'
    )
    if not path:
        raise UserError(f"config.data.path is not set; {how}")
    root = epath.Path(path)
    if not root.is_dir():
        raise UserError(f"config.data.path={path} is not a folder; {how}")
    shards = sorted(root.glob(pattern))
    if not shards:
        raise UserError(f"no {pattern} in config.data.path={path}; {how}")
    return shards


def read_documents(shard: epath.Path) -> Iterator[str]:
    """The documents of one shard.

    UserError names the shard, and the line where there is one, if it is empty, corrupt or
    truncated, if a line is not UTF-8 or not JSON, or if it has no text.
    """
    line_number = 0
    for line_number, line in enumerate(_lines(shard), start=1):
        where = f"{shard}, line {line_number}"
        try:
            record = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise UserError(f"{where}: not UTF-8 at byte {error.start} of the line") from error
        except json.JSONDecodeError as error:
            raise UserError(f"{where}: not JSON ({error.msg})") from error
        if not isinstance(record, dict) or not isinstance(record.get("text"), str):
            raise UserError(f'{where}: no "text" field with a string')
        try:
            record["text"].encode("utf-8")
        except UnicodeEncodeError as error:
            raise UserError(f"{where}: text holds a lone surrogate, so is not Unicode") from error
        yield record["text"]
    if line_number == 0:
        raise UserError(f"{shard}: empty")


def _lines(shard: epath.Path) -> Iterator[bytes]:
    pending, number = b"", 0
    for chunk in _decompressed(shard):
        if isinstance(chunk, Exception):
            raise UserError(f"{shard}, after line {number}: {chunk}") from chunk
        *lines, pending = (pending + chunk).split(b"\n")
        for line in lines:
            number += 1
            yield line
    if pending:
        yield pending


def _decompressed(shard: epath.Path) -> Iterator[bytes | Exception]:
    """Chunks of a shard's content; last an exception if it is corrupt or truncated."""
    with shard.open("rb") as file:
        if shard.suffix == ".zst":
            # The stream reader takes a truncated frame for a finished one, so look at `eof`.
            decoder = zstandard.ZstdDecompressor().decompressobj()
            fresh = True
            while chunk := file.read(_CHUNK):
                while chunk:
                    try:
                        yield decoder.decompress(chunk)
                    except zstandard.ZstdError as error:
                        yield ValueError(f"corrupt zstd data ({error})")
                        return
                    fresh, chunk = False, b""
                    if decoder.eof:  # Another frame may follow.
                        chunk = decoder.unused_data
                        decoder, fresh = zstandard.ZstdDecompressor().decompressobj(), True
            if not fresh:
                yield ValueError("truncated zstd data")
        elif shard.suffix == ".gz":
            try:
                with gzip.open(file) as unzipped:
                    while chunk := unzipped.read(_CHUNK):
                        yield chunk
            except (EOFError, OSError) as error:
                yield ValueError(f"corrupt or truncated gzip data ({error})")
        else:
            while chunk := file.read(_CHUNK):
                yield chunk


@dataclasses.dataclass(frozen=True)
class PackedText:
    """Row source over documents packed into rows of ``length`` tokens."""

    tokens: np.ndarray  # uint16 [pairs]: what is read; targets[i] follows tokens[i].
    targets: np.ndarray  # uint16 [pairs]
    starts: np.ndarray  # int64 [documents]: where each document's pairs start.
    length: int
    vocab_size: int = BYTE_VOCAB_SIZE

    @classmethod
    def from_shards(cls, shards: list[epath.Path], length: int) -> "PackedText":
        """Reads, tokenises and packs; see read_documents for the errors."""
        return cls.from_documents((text for s in shards for text in read_documents(s)), length)

    @classmethod
    def from_documents(cls, documents: Iterator[str], length: int) -> "PackedText":
        """Packs documents in the order given."""
        read, predict = [], []
        for text in documents:
            tokens = np.concatenate([[BOS], byte_tokens(text), [EOS]]).astype(np.uint16)
            read.append(tokens[:-1])
            predict.append(tokens[1:])
        starts = np.cumsum([0] + [len(part) for part in read[:-1]])
        return cls(np.concatenate(read), np.concatenate(predict), starts, length)

    @property
    def num_rows(self) -> int:
        """The last row is padded."""
        return -(-len(self.tokens) // self.length)

    def rows(self, indices: np.ndarray) -> Rows:
        """See data/rows.py. Segments are numbered from 1 within the row."""
        at = np.asarray(indices)[:, None] * self.length + np.arange(self.length)
        real = at < len(self.tokens)
        at = np.minimum(at, len(self.tokens) - 1)
        document = np.searchsorted(self.starts, at, side="right")
        first = np.maximum(self.starts[document - 1], at[:, :1])  # Of the segment in this row.
        return {
            "tokens": (self.tokens[at] * real).astype(np.int32),
            "targets": (self.targets[at] * real).astype(np.int32),
            "loss_weights": real.astype(np.float32),
            "answer": np.zeros_like(real),
            "segment_ids": ((document - document[:, :1] + 1) * real).astype(np.int32),
            "positions": ((at - first) * real).astype(np.int32),
        }
