"""The tokenizer inside a GGUF file as files of its own, in the form that `own:DIR` reads.

A GGUF file has the pieces, merges or scores, and, of byte-level ones, the name of the rule by which
words are cut. The rules here are those that llama.cpp has under these names, written as steps of a
tokenizer.json. Of SmolLM2's, llama.cpp gave the same ids on all of 300 texts; transformers 5.24
leaves the rule out and cuts as GPT-2 does: blanks before a digit become other tokens (28 of 300).
With small files of every rule and of a SentencePiece model, llama.cpp's ids were the same on 100
documents and 500 odd texts each, but for qwen2's composed characters, which are meant.
"""

from collections.abc import Sequence
from typing import Any

from etils import epath

from looped_jax.data.own_ids import CONFIG, FILE
from looped_jax.data.pieces import SPACE_MARK
from looped_jax.errors import UserError
from looped_jax.interop.tokenizer_json import (
    BYTE_LEVEL,
    added_token,
    before,
    bpe,
    merges_of_scores,
    write_json,
)

# Kinds of pieces (tokenizer.ggml.token_type).
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)


def _split(pattern: str) -> dict[str, Any]:
    return {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }


_DIGITS = {"type": "Digits", "individual_digits": True}
# GPT-2's words: contractions; letters, numbers or signs with a blank before them; blanks.
_GPT2 = _split(
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
)


def _words(digits: str) -> dict[str, Any]:
    """Words of Llama 3 and Qwen: numbers of so many digits, signs with the newlines behind them."""
    contractions = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
    letters = r"[^\r\n\p{L}\p{N}]?\p{L}+"
    signs = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
    blanks = r"\s*[\r\n]+|\s+(?!\S)|\s+"
    return _split("|".join((contractions, letters, digits, signs, blanks)))


# tokenizer.ggml.pre -> the steps that cut words.
_RULES = {
    "smollm": [_DIGITS, _GPT2],
    "starcoder": [_DIGITS, _GPT2],
    "gpt-2": [_GPT2],
    "llama-bpe": [_words(r"\p{N}{1,3}")],
    "qwen2": [_words(r"\p{N}")],
    # What llama.cpp does where a file does not say.
    "default": [_split(r"[\p{P}$+<=>^~|]+"), _GPT2, _split(r"\p{N}+"), _split("[0-9]{3}")],
}
# A word that is a piece is that piece, whatever the merges say.
_WHOLE_WORDS = ("llama-bpe",)
# The models' own files compose characters (NFC), which llama.cpp does not.
_COMPOSED = ("qwen2",)


def write_gguf_tokenizer(reader: Any, out: epath.Path) -> None:
    """Writes tokenizer.json and tokenizer_config.json of a file's tokenizer in the folder ``out``.

    Ids are the file's; control tokens and unused ones are special tokens, those that the user
    defined are found in a text before anything else.

    Args:
      reader: a gguf.GGUFReader.
      out: made if it is not there.

    UserError, and nothing written, if the file has no tokenizer, or one of a kind or with a rule
    that is not known here.
    """
    found = _Fields(reader)
    kind = found.get("model")
    writers = {"gpt2": _byte_level, "llama": _sentencepiece}
    if kind not in writers:
        raise UserError(
            "the GGUF file has no tokenizer (tokenizer.ggml.model)"
            if kind is None
            else f"the GGUF file's tokenizer.ggml.model={kind!r} is none of {', '.join(writers)}"
        )
    pieces = found.each("tokens", None)
    types = found.each("token_type", len(pieces))
    seen: set[str] = set()
    for piece in pieces:
        if piece in seen:
            raise UserError(f"the GGUF file's tokenizer has the token {piece!r} twice")
        seen.add(piece)
    names = {}
    for key in ("bos", "eos"):
        number = found.get(f"{key}_token_id")
        if number is None and key == "eos":
            raise UserError("the GGUF file does not say tokenizer.ggml.eos_token_id")
        if number is not None and number >= len(pieces):
            raise UserError(f"the GGUF file's tokenizer.ggml.{key}_token_id={number} is no token")
        names[f"{key}_token"] = None if number is None else pieces[number]
    description = writers[kind](found, pieces, types)
    begins = found.get("add_bos_token")
    # Where a file does not say, llama.cpp puts BOS before a text of the second kind only.
    if names["bos_token"] is not None and (kind == "llama" if begins is None else begins):
        description["post_processor"] = before([names["bos_token"]], [found.get("bos_token_id")])
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / FILE, description)
    write_json(
        out / CONFIG,
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **{key: name for key, name in names.items() if name is not None},
            "clean_up_tokenization_spaces": False,
            "split_special_tokens": True,
        },
    )


class _Fields:
    """What is said under tokenizer.ggml."""

    def __init__(self, reader: Any):
        self._fields = reader.fields

    def get(self, key: str) -> Any:
        field = self._fields.get(f"tokenizer.ggml.{key}")
        return None if field is None else field.contents()

    def each(self, key: str, count: int | None) -> list[Any]:
        """A list, one for each of ``count`` tokens where that is known."""
        values = self.get(key)
        if values is None or (count is not None and len(values) != count):
            there = "no" if values is None else f"{len(values)}"
            needed = "" if count is None else f" for {count} tokens"
            raise UserError(f"the GGUF file has {there} tokenizer.ggml.{key}{needed}")
        return list(values)


def _description(
    model: Any, pieces: Sequence[str], types: Sequence[int], **parts: Any
) -> dict[str, Any]:
    added = [
        added_token(i, piece, kind != USER_DEFINED)
        for i, (piece, kind) in enumerate(zip(pieces, types, strict=True))
        if kind not in (NORMAL, BYTE)
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": None,
        **parts,
        "model": model,
    }


def _in_model(pieces: Sequence[str], types: Sequence[int]) -> dict[str, int]:
    """The pieces that the model itself is to know. Added tokens that it does not know are given the
    ids behind all that it does, whatever the file says: so those before its last one are in it."""
    count = max(i for i, kind in enumerate(types) if kind in (NORMAL, BYTE, UNKNOWN)) + 1
    return {piece: i for i, piece in enumerate(pieces[:count])}


def _byte_level(found: _Fields, pieces: list[str], types: list[int]) -> dict[str, Any]:
    rule = found.get("pre") or "default"
    if rule not in _RULES:
        raise UserError(
            f"the GGUF file cuts words by the rule tokenizer.ggml.pre={rule!r}, which is none of "
            f"{', '.join(_RULES)}: take the tokenizer.json of the model that it was made from"
        )
    merges = [tuple(merge.split(" ")) for merge in found.each("merges", None)]
    if len(merges) == 1 and "".join(merges[0]) not in pieces:
        merges = []  # There for readers that want one (gguf_file.py): it makes no token.
    return _description(
        bpe(_in_model(pieces, types), merges, ignore_merges=rule in _WHOLE_WORDS),
        *(pieces, types),
        normalizer={"type": "NFC"} if rule in _COMPOSED else None,
        pre_tokenizer={"type": "Sequence", "pretokenizers": [*_RULES[rule], BYTE_LEVEL]},
        decoder=BYTE_LEVEL,
    )


def _sentencepiece(found: _Fields, pieces: list[str], types: list[int]) -> dict[str, Any]:
    if found.get("remove_extra_whitespaces"):
        raise UserError("the GGUF file's tokenizer removes blanks, which no rule here does")
    for piece, kind in zip(pieces, types, strict=True):
        if kind == USER_DEFINED and SPACE_MARK in piece:
            raise UserError(
                f"the GGUF file always keeps {piece!r} together: this cannot be written as a {FILE}"
            )
    scores = found.each("scores", len(pieces))
    normal = {piece: scores[i] for i, piece in enumerate(pieces) if types[i] == NORMAL}
    unknown = next((piece for i, piece in enumerate(pieces) if types[i] == UNKNOWN), None)
    prefix = found.get("add_space_prefix")
    prefix = True if prefix is None else prefix  # As in Llama 2, where files do not say.
    blank, mark = {"String": " "}, {"String": SPACE_MARK}
    normalizers = [
        *([{"type": "Prepend", "prepend": SPACE_MARK}] if prefix else []),
        {"type": "Replace", "pattern": blank, "content": SPACE_MARK},
    ]
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": mark, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        *([{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []),
    ]
    model = bpe(
        _in_model(pieces, types),
        merges_of_scores(normal),
        unk_token=unknown,
        fuse_unk=True,
        byte_fallback=BYTE in types,
    )
    return _description(
        model,
        *(pieces, types),
        normalizer={"type": "Sequence", "normalizers": normalizers},
        decoder={"type": "Sequence", "decoders": decoders},
    )
