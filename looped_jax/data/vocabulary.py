"""Vocabularies of text: bytes, SentencePiece models, Hugging Face `tokenizer.json` files.

One layout of ids: PAD, BOS and EOS (data/rows.py) come first, then the pieces in their own order,
so piece i of a model has id FIRST_FREE_ID + i. Text never becomes PAD, BOS or EOS, whatever it
says: a document that spells out `<|endoftext|>` is a document with these characters in it. Only
`own:DIR` keeps the ids that a model from elsewhere was trained with (data/own_ids.py).
"""

import functools
import hashlib
import json
import re
from collections.abc import Iterable
from typing import Any

from etils import epath

from looped_jax.config import ASSETS
from looped_jax.data.own_ids import OWN, OwnIds, own_fingerprint
from looped_jax.data.pieces import BYTE_OF_CHARACTER, MAX_PART, SPACE_MARK, Bytes, Vocabulary
from looped_jax.data.rows import FIRST_FREE_ID
from looped_jax.errors import UserError, from_extra, nearest

# Named vocabularies that come with the project: NAME.model beside NAME.json, its provenance.
SHIPPED = epath.Path(ASSETS) / "vocabularies"


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
            else piece.piece.replace(SPACE_MARK, " ").encode()
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
            [self._model.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE_MARK.encode()]
            if model.trainer_spec.byte_fallback
            else [self._model.unk_id()]
        )

    def _encode_part(self, text: str) -> list[int]:
        first, *others = text.split(SPACE_MARK)
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
                pieces.append(bytes(BYTE_OF_CHARACTER[character] for character in shown))
        self.pieces = tuple(pieces)
        prefix = (description.get("pre_tokenizer") or {}).get("add_prefix_space", False)
        self.lossless = not description.get("normalizer") and not prefix

    def _encode_part(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids


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
            f"{', '.join(known)}, the path of a SentencePiece .model or a tokenizer.json, or "
            "own:DIR, a folder of a model from Hugging Face"
        )
    return path


def vocabulary_fingerprint(spec: str) -> str:
    """The vocabulary's fingerprint, without loading it."""
    if spec.startswith(OWN):
        return own_fingerprint(spec)
    path = vocabulary_file(spec)
    return hashlib.sha256(path.read_bytes()).hexdigest() if path else Bytes.fingerprint


@functools.lru_cache(maxsize=4)
def load_vocabulary(spec: str) -> Vocabulary:
    """The vocabulary that config.data.vocabulary names; UserError if there is none."""
    if spec.startswith(OWN):
        return OwnIds(spec)
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
