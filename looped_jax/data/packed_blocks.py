"""The first pass of preparing text: a block of lines becomes packed rows in a file of its own.

A file's name is the hash of the lines it was made of, and nothing in it says where in the source
the block lies. So what is done stays done when another line of the source is mended, and it does
not matter if two workers make the same file. `NAME.json`, written last, says that `NAME.rows` is
whole.
"""

import dataclasses
import hashlib
import io
import itertools
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from etils import epath

from looped_jax.data.documents import Block, Document, Source, bad_lines, parse, skipped
from looped_jax.data.files import write_once
from looped_jax.data.packing import Encoded, block_places, component_id, pack, token_dtype
from looped_jax.data.text import encode
from looped_jax.data.vocabulary import load_vocabulary
from looped_jax.errors import RunError, UserError


@dataclasses.dataclass(frozen=True)
class Packing:
    """What, beside its lines, decides a block's rows: T, the vocabulary's name, and which documents
    are copied (component -> copies, by a draw with ``seed``)."""

    length: int
    vocabulary: str
    weights: Mapping[str, float]
    seed: int


# Of a block: which file of the source, which block of that.
Place = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Packed:
    """Of a block: where it is in the source, its file, and what is in it.

    components: per component documents, text_bytes, decoded_bytes and text_tokens of the lines,
      copies and tokens of the rows.
    skipped: `blank_lines` and `byte_order_marks`, where there are any.
    """

    place: Place
    name: str
    bytes: int
    components: dict[str, dict[str, int]]
    skipped: dict[str, int]


@dataclasses.dataclass(frozen=True)
class Bad:
    """The bad lines of a block, each a message that says where and what."""

    place: Place
    messages: list[str]


def block_name(block: Block) -> str:
    """What the files of a block are called: a hash of its content, and of whether a file begins
    with it, where a byte order mark may stand."""
    return hashlib.sha256(bytes([block.first_line == 1]) + block.content).hexdigest()[:40]


def read_packed(folder: epath.Path, place: Place, name: str) -> Packed | None:
    """What is known of a block that was packed; None if it was not."""
    try:
        content = json.loads(_summary(folder, name).read_text())
    except FileNotFoundError:
        return None
    return Packed(place, name, **content)


def rows_file(folder: epath.Path, name: str) -> epath.Path:
    """The file of a packed block's rows."""
    return folder / f"{name}.rows"


def remove_packed(folder: epath.Path, name: str) -> None:
    """Removes a packed block; what says that it is whole goes first."""
    _summary(folder, name).unlink(missing_ok=True)
    rows_file(folder, name).unlink(missing_ok=True)


def _summary(folder: epath.Path, name: str) -> epath.Path:
    return folder / f"{name}.json"


def read_rows(folder: epath.Path, number: int, name: str) -> Iterator[bytes]:
    """The stored rows of a packed block, in order, as those of block ``number`` of the source."""
    with rows_file(folder, name).open("rb") as file:
        lengths, places = np.load(file), np.load(file)
        content = np.frombuffer(bytearray(file.read()), np.uint8)
    for byte in range(4):
        content[places + byte] = number >> 8 * byte & 0xFF
    whole, start = content.tobytes(), 0
    for end in np.cumsum(lengths, dtype=np.int64).tolist():
        yield whole[start:end]
        start = end


@dataclasses.dataclass(frozen=True)
class PackBlock:
    """A job: tokenises and packs a block, or says which of its lines are bad."""

    packing: Packing
    block: Block
    place: Place
    name: str
    folder: epath.Path

    def __call__(self) -> Packed | Bad:
        try:
            rows, components = self._rows()
        except UserError:
            messages = bad_lines(self.block)
            if not messages:
                raise
            return Bad(self.place, messages)
        lengths = np.array([len(row) for row in rows], np.int64)
        starts = np.cumsum([0, *lengths], dtype=np.int64)
        places = [
            start + place
            for start, row in zip(starts.tolist(), rows, strict=False)
            for place in block_places(row)
        ]
        file = io.BytesIO()
        np.save(file, lengths)
        np.save(file, np.array(places, np.int64))
        size = int(lengths.sum())
        content: dict[str, Any] = {
            "bytes": size,
            "components": components,
            "skipped": dict(+skipped(self.block)),
        }
        write_once(rows_file(self.folder, self.name), b"".join([file.getvalue(), *rows]))
        write_once(_summary(self.folder, self.name), json.dumps(content))
        return Packed(self.place, self.name, **content)

    def _rows(self) -> tuple[list[bytes], dict[str, dict[str, int]]]:
        packing = self.packing
        vocabulary = load_vocabulary(packing.vocabulary)
        components: dict[str, Counter[str]] = {}

        def encoded() -> Iterator[Encoded]:
            for number, document in enumerate(parse(self.block)):
                copies = _copies(document, packing)
                ids, trained = encode(document, vocabulary)
                counts = components.setdefault(document.component, Counter(copies=0, tokens=0))
                counts["documents"] += 1
                counts["text_bytes"] += len(document.text.encode())
                counts["decoded_bytes"] += int(vocabulary.bytes_of_id[ids].sum())
                counts["text_tokens"] += len(ids)
                for _ in range(copies):
                    counts["copies"] += 1
                    counts["tokens"] += len(ids) + 1  # Its EOS is predicted too.
                    component = component_id(document.component)
                    yield Encoded(ids, trained, component, (0, number))

        dtype, around = token_dtype(vocabulary.size), (vocabulary.bos, vocabulary.eos)
        rows = list(pack(encoded(), packing.length, dtype, around))
        if vocabulary.lossless:
            for name, counts in components.items():
                if counts["text_bytes"] != counts["decoded_bytes"]:
                    raise RunError(
                        f"{self.block.where}, from line {self.block.first_line}: "
                        f"{counts['text_bytes']} bytes of {name} became tokens of "
                        f"{counts['decoded_bytes']} bytes"
                    )
        return rows, {name: dict(counts) for name, counts in components.items()}


@dataclasses.dataclass(frozen=True)
class PackStripe:
    """A job where the source can be read too: packs every ``stripes``-th block of a file of it,
    from block ``stripe`` on, but for those that are packed already.

    All that a file's stripes have in common is that each reads it whole, which takes a hundredth of
    the time of tokenising it.
    """

    packing: Packing
    part: Source
    file: int
    stripe: int
    stripes: int
    block_bytes: int
    folder: epath.Path

    def __call__(self) -> list[Packed | Bad]:
        results: list[Packed | Bad] = []
        blocks = self.part.blocks(self.block_bytes)
        for index in itertools.count():
            place = (self.file, index)
            try:
                block = next(blocks)
            except StopIteration:
                break
            except UserError as error:  # The file itself is broken.
                results.append(Bad(place, [str(error)]))
                break
            if index % self.stripes == self.stripe:
                name = block_name(block)
                results.append(
                    read_packed(self.folder, place, name)
                    or PackBlock(self.packing, block, place, name, self.folder)()
                )
        return results


def _copies(document: Document, packing: Packing) -> int:
    """How often a document is written.

    In a component of weight w: floor(w) times, and once more for a share w - floor(w) of its
    documents, chosen by a hash of seed and text.
    """
    weight = packing.weights.get(document.component, 1.0)
    whole = math.floor(weight)
    drawn = component_id(f"{packing.seed} {document.text}") / (1 << 32)
    return whole + (drawn < weight - whole)
