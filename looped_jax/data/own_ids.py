"""Tokenizers that keep their own ids, as a model that comes from elsewhere needs them.

`own:DIR` is a folder with tokenizer.json and tokenizer_config.json, as models of Hugging Face have
them. Ids are the file's own, BOS and EOS its own tokens: `bos_token`, or `eos_token` where there is
no other (it stood between documents when such a model was trained), and `eos_token`. Text never
becomes a special token, whatever it says. Nothing is done for chats: templates are not read.
"""

import hashlib
import json
import re
from typing import Any

from etils import epath

from looped_jax.data.pieces import BYTE_OF_CHARACTER, Vocabulary, ids_before
from looped_jax.errors import UserError, from_extra

OWN = "own:"
FILE = "tokenizer.json"
CONFIG = "tokenizer_config.json"
# Bytes that no UTF-8 has.
_NEVER = {0xC0, 0xC1, *range(0xF5, 0x100)}
_BYTE_PIECE = re.compile("<0x([0-9A-F]{2})>")


class OwnIds(Vocabulary):
    """A `tokenizer.json` with its own ids. Needs the extra `tokenizers`.

    Byte-level ones (GPT-2, Llama 3, Qwen, SmolLM) and those that were SentencePiece models (Llama
    2, TinyLlama, Mistral, Gemma). Lossless if nothing is normalised or put in front, all bytes of
    UTF-8 have a piece, and none stands for a blank that is another character: the second kind never
    is as Hugging Face writes it, and of the first kind SmolLM's lacks some rare bytes.
    """

    packages = ("tokenizers",)
    first = 0
    # Cuts would show in the ids: only what would take gigabytes is cut.
    max_part = 1 << 22

    def __init__(self, spec: str):
        with from_extra("tokenizers", f"vocabulary {spec}"):
            import tokenizers
        self.spec = spec
        content, description, self.bos, self.eos = _read(spec)
        self.pad = self.eos  # Id 0 may be a word.
        self.fingerprint = _fingerprint(content, self.bos, self.eos)
        added = description["added_tokens"] = description.get("added_tokens") or []
        for token in added:
            token["special"] = token.get("special") or token["id"] in (self.bos, self.eos)
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(json.dumps(description))
        except Exception as error:  # The package raises plain Exception.
            raise UserError(f"vocabulary {spec} has no valid {FILE} ({error})") from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._tokenizer.encode_special_tokens = True  # As text.
        self._before = ids_before(
            *(self._tokenizer.encode("a", add_special_tokens=add).ids for add in (False, True))
        )
        for token in added:
            there = self._tokenizer.token_to_id(token["content"])
            if there != token["id"]:  # The package counts by itself, whatever the file says.
                raise UserError(
                    f"vocabulary {spec}: {FILE} says that {token['content']!r} is {token['id']}, "
                    f"but the package tokenizers reads it as {there}"
                )
        spelling = _Spelling(spec, description)
        shown = {i: piece for piece, i in self._tokenizer.get_vocab().items()}
        by_id = {token["id"]: token for token in added}
        pieces = []
        for i in range(max(shown) + 1):
            if i in (self.bos, self.eos) or (i in by_id and by_id[i]["special"]):
                pieces.append(b"")
            elif i in by_id:
                pieces.append(by_id[i]["content"].encode())
            else:
                pieces.append(spelling.bytes_of(shown.get(i, "")))
        self.pieces = tuple(pieces)
        self.lossless = spelling.one_to_one and not (set(range(256)) - _NEVER) - {
            piece[0] for piece in self.pieces if len(piece) == 1
        }

    @property
    def before(self) -> tuple[int, ...]:
        """What the file's own rule puts before a text: BOS, or nothing."""
        return self._before

    def _encode_part(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids


class _Spelling:
    """How the pieces of a tokenizer.json are written, by what its decoder undoes."""

    def __init__(self, spec: str, description: dict[str, Any]):
        decoders = _flat(description.get("decoder"), "decoders")
        kinds = {decoder["type"] for decoder in decoders}
        self._byte_level = "ByteLevel" in kinds
        self._byte_pieces = "ByteFallback" in kinds
        if not (self._byte_level or self._byte_pieces or "Metaspace" in kinds):
            raise UserError(
                f"vocabulary {spec} is neither byte-level, as GPT-2's, nor with ▁ for a blank, as "
                "Llama 2's: the bytes behind its tokens are not known"
            )
        if (description.get("model") or {}).get("dropout"):
            raise UserError(f"vocabulary {spec} cuts text at random (dropout); take that out of it")
        self._replaced = [
            (decoder["pattern"]["String"], decoder["content"])
            for decoder in decoders
            if decoder["type"] == "Replace" and "String" in decoder["pattern"]
        ]
        self._replaced += [
            (decoder["replacement"], " ") for decoder in decoders if decoder["type"] == "Metaspace"
        ]
        cutters = _flat(description.get("pre_tokenizer"), "pretokenizers")
        self.one_to_one: bool = (
            (self._byte_level or (description["model"].get("byte_fallback") and not self._replaced))
            and not description.get("normalizer")
            and all(_keeps_all(cutter) for cutter in cutters)
            and not any(t.get("lstrip") or t.get("rstrip") for t in description["added_tokens"])
        )

    def bytes_of(self, piece: str) -> bytes:
        if self._byte_level:
            # What is spelled otherwise is never said of a text: merges begin with bytes.
            known = all(character in BYTE_OF_CHARACTER for character in piece)
            return bytes(BYTE_OF_CHARACTER[c] for c in piece) if known else piece.encode()
        if self._byte_pieces and (byte := _BYTE_PIECE.fullmatch(piece)):
            return bytes([int(byte[1], 16)])
        for written, meant in self._replaced:
            piece = piece.replace(written, meant)
        return piece.encode()


def _flat(part: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    """The steps of a part of a tokenizer.json, which may be a sequence of them."""
    if not part:
        return []
    if part["type"] == "Sequence":
        return [step for inner in part[key] for step in _flat(inner, key)]
    return [part]


def _keeps_all(cutter: dict[str, Any]) -> bool:
    """Whether a step that cuts text into words loses and adds nothing."""
    if cutter["type"] == "ByteLevel":
        return not cutter.get("add_prefix_space", True)
    return cutter["type"] == "Digits" or (
        cutter["type"] in ("Split", "Punctuation") and cutter.get("behavior") != "Removed"
    )


def own_fingerprint(spec: str) -> str:
    """The vocabulary's fingerprint, without the tokenizer: of the file and its BOS and EOS."""
    content, _, bos, eos = _read(spec)
    return _fingerprint(content, bos, eos)


def _fingerprint(content: bytes, bos: int, eos: int) -> str:
    return hashlib.sha256(content + json.dumps([bos, eos]).encode()).hexdigest()


def _read(spec: str) -> tuple[bytes, dict[str, Any], int, int]:
    """tokenizer.json, what it says, and the ids of BOS and EOS."""
    path = epath.Path(spec.removeprefix(OWN)) / FILE
    config_path = path.parent / CONFIG
    for needed in (path, config_path):
        if not needed.is_file():
            raise UserError(
                f"config.data.vocabulary={spec!r}: there is no {needed}; give a folder with {FILE} "
                f"and {CONFIG}, as models of Hugging Face have them"
            )
    content = path.read_bytes()
    try:
        description, config = json.loads(content), json.loads(config_path.read_text())
        ids = piece_ids(description)
        named = {key: _name(config.get(key)) for key in ("bos_token", "eos_token")}
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"vocabulary {spec} has no valid {FILE} and {CONFIG} ({type(error).__name__}: {error})"
        ) from error
    if named["eos_token"] is None:
        raise UserError(f"vocabulary {spec}: {config_path} says no eos_token; write it there")
    for key, name in named.items():
        if name is not None and name not in ids:
            raise UserError(f"vocabulary {spec}: {key} {name!r} of {CONFIG} is not in {FILE}")
    eos = ids[named["eos_token"]]
    return content, description, eos if named["bos_token"] is None else ids[named["bos_token"]], eos


def piece_ids(description: dict[str, Any]) -> dict[str, int]:
    """The id of each piece that a tokenizer.json names, added ones too."""
    named = description["model"]["vocab"]
    if isinstance(named, list):  # With scores, by id.
        named = {piece: i for i, (piece, _) in enumerate(named)}
    return named | {t["content"]: t["id"] for t in description.get("added_tokens") or ()}


def _name(token: Any) -> str | None:
    """What a special token is called; it may be written with its properties."""
    return token["content"] if isinstance(token, dict) else token
