"""Packing: documents as token ids -> rows of fixed length, and the bytes a row is stored as.

A document is `BOS text EOS`. Its next-token pairs (read, predict) are laid end to end with those of
the other documents and cut into rows of T pairs, so that every token is predicted exactly once. A
document that does not fit continues in the next row, as a new segment with positions from 0:
what was before the cut is out of sight, for every model alike. Parts of a document may be prompts,
read but not trained on; one with prompts that fits in a row is not cut.

A stored row is, little-endian, uint32 S, then S times (uint32 component, two uint32: the document,
uint32 R, R times uint32: the lengths of runs of pairs, not trained on and trained on in turns),
then the tokens of the S segments, each one longer than its pairs (the last is only predicted), as
uint16 or uint32. Components are stored by a hash of their name, so that rows can be written before
all names are known; a document by its place in the source, so that its parts are known as its own
wherever their rows are shuffled to.
"""

import dataclasses
import itertools
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from looped_jax.data.rows import BOS, EOS, Rows


class Encoded(NamedTuple):
    """A document that is to be packed, or a segment: a part of one.

    ids: of a document without BOS and EOS; of a segment one more than its pairs.
    trained: which of a document's ids, or of a segment's pairs, are trained on. An EOS always is.
    component: component_id.
    document: (block, number) of its place in the source, each less than 2^32.
    """

    ids: np.ndarray
    trained: np.ndarray
    component: int
    document: tuple[int, int]


class StoredSegment(NamedTuple):
    """What a stored row says of a segment: component_id, Encoded.document, and the runs of pairs
    not trained on and trained on, in turns."""

    component: int
    document: tuple[int, int]
    runs: list[int]


def component_id(name: str) -> int:
    """The uint32 that a component's name is stored as."""
    return zlib.crc32(name.encode())


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest type that tokens are stored as."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


def pack(
    documents: Iterable[Encoded],
    length: int,
    dtype: np.dtype,
    ends: tuple[int, int] = (BOS, EOS),
) -> Iterator[bytes]:
    """Yields stored rows of ``length`` pairs; only the last may be shorter, or one before a
    document with prompts.

    Args:
      documents: in the order of the rows.
      length: T.
      dtype: token_dtype of the vocabulary.
      ends: its BOS and EOS.
    """
    bos, eos = ends
    segments: list[Encoded] = []
    free = length
    for document in documents:
        tokens = np.concatenate([[bos], document.ids, [eos]]).astype(dtype)
        trained = np.append(document.trained, True)
        start, pairs = 0, len(trained)
        if free < pairs <= length and not trained.all():
            yield _stored(segments)
            segments, free = [], length
        while start < pairs:
            end = min(start + free, pairs)
            part = document._replace(ids=tokens[start : end + 1], trained=trained[start:end])
            segments.append(part)
            free -= end - start
            start = end
            if not free:
                yield _stored(segments)
                segments, free = [], length
    if segments:
        yield _stored(segments)


def _stored(segments: list[Encoded]) -> bytes:
    header = [len(segments)]
    for _, trained, component, document in segments:
        changes = (np.flatnonzero(trained[1:] != trained[:-1]) + 1).tolist()
        ends = [*([0] if trained[0] else []), *changes, len(trained)]
        runs = [end - start for start, end in itertools.pairwise([0, *ends])]
        header += [component, *document, len(runs), *runs]
    return np.array(header, "<u4").tobytes() + b"".join(s.ids.tobytes() for s in segments)


def segments_of(record: bytes) -> list[StoredSegment]:
    """The segments of a stored row; ValueError if it ends before them."""
    numbers = np.frombuffer(record, "<u4", len(record) // 4)
    segments, at = [], 1
    for _ in range(numbers[0] if len(numbers) else 1):
        start = at + 4
        at = start + int(numbers[start - 1]) if start <= len(numbers) else start
        if at > len(numbers):
            raise ValueError(f"a row of {len(record)} bytes is damaged")
        component, block, number = numbers[start - 4 : start - 1].tolist()
        segments.append(StoredSegment(component, (block, number), numbers[start:at].tolist()))
    return segments


def block_places(record: bytes) -> list[int]:
    """Where in a stored row, as offsets of bytes, the uint32 of its documents' blocks are."""
    places, at = [], 4
    for segment in segments_of(record):
        places.append(at + 4)  # After its component.
        at += 16 + 4 * len(segment.runs)
    return places


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
        document = np.full(shape, -1, np.int64)
        for row, record in enumerate(records):
            segments = segments_of(record)
            total = sum(sum(segment.runs) for segment in segments)
            header = 4 + sum(16 + 4 * len(segment.runs) for segment in segments)
            stored = header + dtype.itemsize * (total + len(segments))
            if total > self.length or len(record) != stored:
                raise ValueError(f"a row of {len(record)} bytes is damaged")
            read = np.frombuffer(record, dtype, offset=header)
            start = 0
            for number, (component, (block, place), runs) in enumerate(segments, start=1):
                pairs = sum(runs)
                here = slice(start, start + pairs)
                # Each segment before this one has one token more than pairs.
                first = start + number - 1
                tokens[row, here] = read[first : first + pairs]
                targets[row, here] = read[first + 1 : first + 1 + pairs]
                segment_ids[row, here] = number
                positions[row, here] = np.arange(pairs)
                group[row, here] = group_of[component]
                document[row, here] = (block << 32) + place
                trained[row, here] = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
                start += pairs
        return {
            "tokens": tokens,
            "targets": targets,
            "loss_weights": trained.astype(np.float32),
            "answer": np.zeros(shape, bool),
            "segment_ids": segment_ids,
            "positions": positions,
            "group": group,
            "document": document,
            "target_bytes": self.bytes_of_id[targets] * trained,
        }
