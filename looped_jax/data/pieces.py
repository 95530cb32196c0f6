"""What a vocabulary is: pieces, fixed strings of bytes, each with an id.

So decoding is joining, and the bytes behind any number of tokens are counted by looking them up:
bits per byte need no text.
"""

import abc
import functools
import hashlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from looped_jax.data.rows import BOS, EOS, FIRST_FREE_ID, PAD

# Tokenisers take time or memory that grows faster than the text does; longer texts are
# tokenised in parts, cut after a newline where there is one.
MAX_PART = 1 << 16
# SentencePiece writes a space as this character, and would read a real one as a space.
SPACE_MARK = "▁"


def ids_before(alone: Sequence[int], whole: Sequence[int]) -> tuple[int, ...]:
    """What a tokenizer's own rule puts before a text, of the ids of one ``alone`` and ``whole``."""
    if not alone or alone[0] not in whole:
        return ()
    return tuple(whole[: whole.index(alone[0])])


class Vocabulary(abc.ABC):
    """Text <-> ids. Immutable, and made again from ``spec`` in another process."""

    spec: str  # What config.data.vocabulary says.
    fingerprint: str  # SHA-256 of what defines it.
    pieces: tuple[bytes, ...]  # The bytes of each piece.
    lossless: bool  # Whether decode(encode(text)) == text for every text.
    packages: tuple[str, ...] = ()  # Whose versions decide how text is cut.
    first: int = FIRST_FREE_ID  # The id of piece 0.
    bos: int = BOS  # What a document begins with,
    eos: int = EOS  # and ends with.
    pad: int = PAD  # What fills up rows in other programs.
    max_part: int = MAX_PART  # Characters that are tokenised at once.

    @property
    def before(self) -> tuple[int, ...]:
        """What stands before a text that is to be continued."""
        return (self.bos,)

    @property
    def size(self) -> int:
        """V: ids from 0 on, of which the pieces are the last ones."""
        return self.first + len(self.pieces)

    @functools.cached_property
    def bytes_of_id(self) -> np.ndarray:
        """int32 [V]: bytes of text behind each id; none behind BOS, EOS and the like."""
        return np.array([0] * self.first + [len(piece) for piece in self.pieces], np.int32)

    @abc.abstractmethod
    def _encode_part(self, text: str) -> Sequence[int] | np.ndarray:
        """Piece numbers of a text of at most ``max_part`` characters."""

    def encode(self, text: str) -> np.ndarray:
        """int32 ids of a text, without BOS and EOS. UnicodeEncodeError for lone surrogates."""
        text.encode("utf-8")  # Tokenisers differ in what they make of a lone surrogate.
        cut = parts(text, self.max_part)
        found = [np.asarray(self._encode_part(part), np.int32) for part in cut]
        return self.first + np.concatenate([np.zeros(0, np.int32), *found])

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of ids; a character may be cut at either end."""
        return b"".join(self.pieces[i - self.first] for i in ids if i >= self.first)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")


class Bytes(Vocabulary):
    """UTF-8 bytes: 256 pieces, nothing to load."""

    spec = "bytes"
    fingerprint = hashlib.sha256(b"utf-8 bytes").hexdigest()
    pieces = tuple(bytes([byte]) for byte in range(256))
    lossless = True

    def _encode_part(self, text: str) -> np.ndarray:
        return np.frombuffer(text.encode("utf-8"), np.uint8)


def _byte_level_characters() -> dict[str, int]:
    """How byte-level tokenisers spell bytes: printable Latin-1 as itself, the other bytes by the
    characters from U+0100 on, in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


BYTE_OF_CHARACTER = _byte_level_characters()


def parts(text: str, most: int = MAX_PART) -> Iterator[str]:
    """A text in parts of at most ``most`` characters, cut after a newline where there is one."""
    start = 0
    while len(text) - start > most:
        newline = text.rfind("\n", start, start + most)
        end = newline + 1 if newline >= 0 else start + most
        yield text[start:end]
        start = end
    if start < len(text):
        yield text[start:]
