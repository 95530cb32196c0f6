"""Parts of a tokenizer.json that more than one tokenizer here is written from."""

import json
from collections.abc import Sequence
from typing import Any

from etils import epath

from looped_jax.errors import UserError

BYTE_LEVEL = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": False,
    "use_regex": False,  # Words are cut by another step, or not at all.
}


def added_token(number: int, content: str, special: bool) -> dict[str, Any]:
    """An entry of `added_tokens`: found in a text as it stands, before anything else is."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": content, **flags, "special": special}


def bpe(vocabulary: dict[str, int], merges: Sequence[Sequence[str]], **options: Any) -> Any:
    """The `model` of byte pair encoding."""
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        **options,
        "vocab": vocabulary,
        "merges": [list(pair) for pair in merges],
    }


def before(names: Sequence[str], ids: Sequence[int]) -> dict[str, Any] | None:
    """The `post_processor` that puts these tokens before a text; None if there is none."""
    if not names:
        return None
    single = [
        *({"SpecialToken": {"id": name, "type_id": 0}} for name in names),
        {"Sequence": {"id": "A", "type_id": 0}},
    ]
    special = {
        name: {"id": name, "ids": [i], "tokens": [name]} for name, i in zip(names, ids, strict=True)
    }
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": special,
    }


def merges_of_scores(pieces: dict[str, float]) -> list[tuple[str, str]]:
    """The merges by which BPE of a tokenizer.json cuts text as SentencePiece's does.

    SentencePiece joins the two neighbours whose joint piece has the best score, whatever they are;
    a tokenizer.json has a rank for each pair. So every way to cut a piece in two is a merge, in the
    order of the pieces' scores.

    UserError for two joined pieces of one score: which comes first then depends on the text; and
    for a character of a piece that is none itself: only SentencePiece joins such ones.
    """
    for piece in pieces:
        if missing := [character for character in piece if character not in pieces]:
            raise UserError(
                f"the SentencePiece model has the piece {piece!r}, but not {missing[0]!r}: "
                "its merges cannot be written as a tokenizer.json"
            )
    found = []
    scores = set()
    for piece, score in pieces.items():
        cuts = [
            (-score, at, piece)
            for at in range(1, len(piece))
            if piece[:at] in pieces and piece[at:] in pieces
        ]
        if cuts and score in scores:
            raise UserError(
                f"the SentencePiece model gives two pieces the score {score:g} ({piece!r} and one "
                "before it): its order of merges cannot be written as a tokenizer.json"
            )
        if cuts:
            scores.add(score)
        found += cuts
    return [(piece[:at], piece[at:]) for _, at, piece in sorted(found)]


def write_json(path: epath.Path, content: Any) -> None:
    """Writes a value as JSON, as it is read by people, too."""
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
