"""Vocabularies of text: bytes, SentencePiece models, Hugging Face `tokenizer.json` files.

One layout of ids for all: PAD, BOS and EOS (data/rows.py) come first, then the pieces in their own
order, so piece i of a model has id FIRST_FREE_ID + i. Text never becomes PAD, BOS or EOS, whatever
it says: a document that spells out `<|endoftext|>` is a document with these characters in it.

Every id stands for a fixed string of bytes, so decoding is joining and the bytes behind any
number of tokens are counted by looking them up: bits per byte need no text.
"""

import abc
import functools
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from etils import epath

from looped_jax.config import ASSETS
from looped_jax.data.rows import FIRST_FREE_ID
from looped_jax.errors import UserError, from_extra, nearest

# Named vocabularies that come with the project: NAME.model beside NAME.json, its provenance.
SHIPPED = epath.Path(ASSETS) / "vocabularies"
# Tokenisers take time or memory that grows faster than the text does; longer texts are
# tokenised in parts, cut after a newline where there is one.
MAX_PART = 1 << 16
# SentencePiece writes a space as this character, and would read a real one as a space.
_SPACE_MARK = "▁"


class Vocabulary(abc.ABC):
    """Text <-> ids. Immutable, and made again from ``spec`` in another process."""

    spec: str  # What config.data.vocabulary says.
    fingerprint: str  # SHA-256 of what defines it.
    pieces: tuple[bytes, ...]  # The bytes of each piece.
    lossless: bool  # Whether decode(encode(text)) == text for every text.
    packages: tuple[str, ...] = ()  # Whose versions decide how text is cut.

    @property
    def size(self) -> int:
        """V: PAD, BOS, EOS and the pieces."""
        return FIRST_FREE_ID + len(self.pieces)

    @functools.cached_property
    def bytes_of_id(self) -> np.ndarray:
        """int32 [V]: bytes of text behind each id; none behind PAD, BOS and EOS."""
        return np.array([0] * FIRST_FREE_ID + [len(piece) for piece in self.pieces], np.int32)

    @abc.abstractmethod
    def _encode_part(self, text: str) -> Sequence[int] | np.ndarray:
        """Piece numbers of a text of at most MAX_PART characters."""

    def encode(self, text: str) -> np.ndarray:
        """int32 ids of a text, without BOS and EOS. UnicodeEncodeError for lone surrogates."""
        text.encode("utf-8")  # Tokenisers differ in what they make of a lone surrogate.
        parts = [np.asarray(self._encode_part(part), np.int32) for part in _parts(text)]
        return FIRST_FREE_ID + np.concatenate([np.zeros(0, np.int32), *parts])

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of ids; a character may be cut at either end."""
        return b"".join(self.pieces[i - FIRST_FREE_ID] for i in ids if i >= FIRST_FREE_ID)

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


class SentencePiece(Vocabulary):
    """A SentencePiece `.model`.

    Lossless if the model neither normalises nor adds or removes blanks and falls back to bytes, as
    the shipped ones do.
    """

    packages = ("sentencepiece",)

    def __init__(self, spec: str, content: bytes):
        import sentencepiece
        from sentencepiece import sentencepiece_model_pb2

        proto: Any = sentencepiece_model_pb2  # Its classes are made at run time.
        self.spec, self.fingerprint = spec, hashlib.sha256(content).hexdigest()
        try:
            model = proto.ModelProto.FromString(content)
            self._model = sentencepiece.SentencePieceProcessor(model_proto=content)
        except Exception as error:  # Protobuf's DecodeError, and RuntimeError.
            raise UserError(f"vocabulary {spec} is not a SentencePiece model") from error
        kinds = proto.ModelProto.SentencePiece.Type
        self.pieces = tuple(
            bytes([int(piece.piece[1:-1], 16)])
            if piece.type == kinds.BYTE
            else piece.piece.replace(_SPACE_MARK, " ").encode()
            for piece in model.pieces
        )
        normalizer = model.normalizer_spec
        self.lossless = bool(
            model.trainer_spec.byte_fallback
            and normalizer.name == "identity"
            and not normalizer.add_dummy_prefix
            and not normalizer.remove_extra_whitespaces
        )
        self._space_mark = (
            [self._model.piece_to_id(f"<0x{byte:02X}>") for byte in _SPACE_MARK.encode()]
            if model.trainer_spec.byte_fallback
            else [self._model.unk_id()]
        )

    def _encode_part(self, text: str) -> list[int]:
        first, *others = text.split(_SPACE_MARK)
        ids: list[int] = self._model.encode(first)
        for other in others:
            ids += self._space_mark + self._model.encode(other)
        return ids


class HuggingFace(Vocabulary):
    """A byte-level `tokenizer.json`, as those of GPT-2 and GPT-NeoX. Needs the extra `tokenizers`.

    Lossless if the file has no normaliser (GPT-2; GPT-NeoX composes characters, NFC).
    """

    packages = ("tokenizers",)

    def __init__(self, spec: str, content: bytes):
        with from_extra("tokenizers", f"vocabulary {spec}"):
            import tokenizers
        self.spec, self.fingerprint = spec, hashlib.sha256(content).hexdigest()
        try:
            self._tokenizer = tokenizers.Tokenizer.from_buffer(content)
            description = json.loads(content)
        except Exception as error:  # The package raises plain Exception.
            raise UserError(f"vocabulary {spec} is not a tokenizer.json ({error})") from error
        if (description.get("decoder") or {}).get("type") != "ByteLevel":
            raise UserError(f"vocabulary {spec} is not byte-level, as GPT-2's and GPT-NeoX's are")
        # Texts are whole parts of documents: nothing to add around them, nothing to cut.
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._tokenizer.post_processor = tokenizers.processors.ByteLevel(trim_offsets=False)
        added = {token["id"]: token["content"] for token in description.get("added_tokens", ())}
        pieces = []
        for i in range(max(self._tokenizer.get_vocab().values()) + 1):
            if i in added:
                pieces.append(added[i].encode())
            else:
                shown = self._tokenizer.id_to_token(i) or ""
                pieces.append(bytes(_BYTE_OF_CHARACTER[character] for character in shown))
        self.pieces = tuple(pieces)
        prefix = (description.get("pre_tokenizer") or {}).get("add_prefix_space", False)
        self.lossless = not description.get("normalizer") and not prefix

    def _encode_part(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids


def _byte_level_characters() -> dict[str, int]:
    """How byte-level tokenisers spell bytes: printable Latin-1 as itself, the other bytes by the
    characters from U+0100 on, in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


_BYTE_OF_CHARACTER = _byte_level_characters()


def _parts(text: str) -> Iterator[str]:
    start = 0
    while len(text) - start > MAX_PART:
        newline = text.rfind("\n", start, start + MAX_PART)
        end = newline + 1 if newline >= 0 else start + MAX_PART
        yield text[start:end]
        start = end
    if start < len(text):
        yield text[start:]


def shipped_names() -> list[str]:
    """The vocabularies in data/vocabularies."""
    return sorted(path.stem for path in SHIPPED.glob("*.model"))


def vocabulary_file(spec: str) -> epath.Path | None:
    """The file behind config.data.vocabulary; None for `bytes`. UserError if there is none."""
    if spec == "bytes":
        return None
    path = epath.Path(spec) if spec.endswith((".model", ".json")) else SHIPPED / f"{spec}.model"
    if not path.is_file():
        known = ["bytes", *shipped_names()]
        raise UserError(
            f"config.data.vocabulary={spec!r}: no such vocabulary{nearest(spec, known)}; "
            f"{', '.join(known)}, or the path of a SentencePiece .model or a tokenizer.json"
        )
    return path


def vocabulary_fingerprint(spec: str) -> str:
    """The vocabulary's fingerprint, without loading it."""
    path = vocabulary_file(spec)
    return hashlib.sha256(path.read_bytes()).hexdigest() if path else Bytes.fingerprint


@functools.lru_cache(maxsize=4)
def load_vocabulary(spec: str) -> Vocabulary:
    """The vocabulary that config.data.vocabulary names; UserError if there is none."""
    path = vocabulary_file(spec)
    if path is None:
        return Bytes()
    kind: Any = HuggingFace if path.suffix == ".json" else SentencePiece
    vocabulary: Vocabulary = kind(spec, path.read_bytes())
    return vocabulary


def train_sentencepiece(texts: Iterable[str], size: int) -> bytes:
    """A lossless SentencePiece BPE model, for a vocabulary of ``size`` ids; the same for the same
    texts. UserError if they are too few for that many pieces.

    Newlines are pieces of their own, digits stay apart (numbers are then read alike wherever they
    occur), runs of blanks may be one piece (indented code).
    """
    import io

    import sentencepiece

    lines = (line for text in texts for line in re.split(r"\n+", text) if line)
    out = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines,
            model_writer=out,
            vocab_size=size - FIRST_FREE_ID,
            model_type="bpe",
            byte_fallback=True,
            character_coverage=0.9999,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            split_digits=True,
            user_defined_symbols=["\n"],
            unk_id=0,
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            max_sentence_length=MAX_PART,
            minloglevel=2,
        )
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"no vocabulary of {size} from these texts: {reason}") from error
    return out.getvalue()
