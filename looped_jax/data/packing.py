"""Packing: documents as token ids -> rows of fixed length, and the bytes a row is stored as.

A document is `BOS text EOS`. Its next-token pairs (read, predict) are laid end to end with those of
the other documents and cut into rows of T pairs, so that every token is predicted exactly once. A
document that does not fit continues in the next row, as a new segment with positions from 0:
what was before the cut is out of sight, for every model alike. The first pairs of a document may be
its prompt, read but not trained on; one with a prompt that fits in a row is not cut.

A stored row is little-endian: uint32 S, then S times (uint32 component, uint32 pairs, uint32 of
these in the prompt), then the tokens of the S segments, each one longer than its pairs (the last is
only predicted), as uint16 or uint32. Components are stored by a hash of their name, so that rows
can be written before all names are known.
"""

import dataclasses
import zlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from looped_jax.data.rows import BOS, EOS, Rows


def component_id(name: str) -> int:
    """The uint32 that a component's name is stored as."""
    return zlib.crc32(name.encode())


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest type that tokens are stored as."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


def pack(
    documents: Iterable[tuple[np.ndarray, int, int]], length: int, dtype: np.dtype
) -> Iterator[bytes]:
    """Yields stored rows of ``length`` pairs; only the last may be shorter, or one before a
    document with a prompt.

    Args:
      documents: (ids without BOS and EOS, component_id, ids in the prompt), in the order of the
        rows.
      length: T.
      dtype: token_dtype of the vocabulary.
    """
    segments: list[tuple[int, int, np.ndarray]] = []
    free = length
    for ids, component, prompt in documents:
        tokens = np.concatenate([[BOS], ids, [EOS]]).astype(dtype)
        start, pairs = 0, len(tokens) - 1
        if prompt and free < pairs <= length:
            yield _stored(segments)
            segments, free = [], length
        while start < pairs:
            end = min(start + free, pairs)
            segments.append(
                (component, min(max(0, prompt - start), end - start), tokens[start : end + 1])
            )
            free -= end - start
            start = end
            if not free:
                yield _stored(segments)
                segments, free = [], length
    if segments:
        yield _stored(segments)


def _stored(segments: list[tuple[int, int, np.ndarray]]) -> bytes:
    header = [len(segments)]
    for component, prompt, tokens in segments:
        header += [component, len(tokens) - 1, prompt]
    return np.array(header, "<u4").tobytes() + b"".join(t.tobytes() for *_, t in segments)


def segments_of(record: bytes) -> list[tuple[int, int, int]]:
    """(component_id, pairs, pairs in the prompt) of each segment of a stored row."""
    if len(record) < 4:
        raise ValueError(f"a row of {len(record)} bytes is damaged")
    count = int(np.frombuffer(record, "<u4", 1)[0])
    header = np.frombuffer(record, "<u4", 3 * count, offset=4)
    return [(int(c), int(n), int(p)) for c, n, p in header.reshape(-1, 3)]


@dataclasses.dataclass(frozen=True)
class RowReader:
    """Turns stored rows into the arrays of data/rows.py."""

    length: int
    components: tuple[str, ...]  # Sorted names; `group` in a row is an index into them.
    bytes_of_id: np.ndarray  # int32 [V]

    def rows(self, records: Sequence[bytes]) -> Rows:
        """N stored rows as arrays [N, T]; segments are numbered from 1 within the row.

        ValueError for bytes that are no row of this length and vocabulary.
        """
        group_of = {component_id(name): i for i, name in enumerate(self.components)}
        dtype = token_dtype(len(self.bytes_of_id))
        shape = (len(records), self.length)
        tokens, targets, segment_ids, positions, group = (
            np.zeros(shape, np.int32) for _ in "12345"
        )
        trained = np.zeros(shape, bool)
        for row, record in enumerate(records):
            segments = segments_of(record)
            total = sum(pairs for _, pairs, _ in segments)
            stored = 4 + 12 * len(segments) + dtype.itemsize * (total + len(segments))
            if total > self.length or len(record) != stored:
                raise ValueError(f"a row of {len(record)} bytes is damaged")
            read = np.frombuffer(record, dtype, offset=4 + 12 * len(segments))
            start = 0
            for number, (component, pairs, prompt) in enumerate(segments, start=1):
                here = slice(start, start + pairs)
                # Each segment before this one has one token more than pairs.
                first = start + number - 1
                tokens[row, here] = read[first : first + pairs]
                targets[row, here] = read[first + 1 : first + 1 + pairs]
                segment_ids[row, here] = number
                positions[row, here] = np.arange(pairs)
                group[row, here] = group_of[component]
                trained[row, start + prompt : start + pairs] = True
                start += pairs
        return {
            "tokens": tokens,
            "targets": targets,
            "loss_weights": trained.astype(np.float32),
            "answer": np.zeros(shape, bool),
            "segment_ids": segment_ids,
            "positions": positions,
            "group": group,
            "target_bytes": self.bytes_of_id[targets] * trained,
        }
