"""A vocabulary as the files by which other programs cut text into the same ids.

Text never becomes a special token here, whatever it says. There, a text that spells one does, by
default. So the three special tokens have names with U+FDD0 in them, which Unicode reserves for
programs' own use and no text is to have; and tokenizer_config.json says `split_special_tokens`, by
which transformers (and what loads tokenizers with it) reads them as text even if one does. With the
package `tokenizers` alone that is `tokenizer.encode_special_tokens = True`.

Ids are equal for every text that is cut at once: up to MAX_PART characters, and of a longer one
where the cut is after a newline, if no word of the vocabulary goes on after newlines. Bytes differ
nowhere.
"""

import json
from typing import Any

from etils import epath

from looped_jax.data.own_ids import CONFIG, FILE, OWN, OwnIds, piece_ids
from looped_jax.data.pieces import BYTE_OF_CHARACTER, SPACE_MARK, Bytes, Vocabulary
from looped_jax.data.rows import BOS, FIRST_FREE_ID
from looped_jax.data.vocabulary import HuggingFace, SentencePiece, vocabulary_file
from looped_jax.errors import UserError
from looped_jax.interop.tokenizer_json import (
    BYTE_LEVEL,
    added_token,
    before,
    bpe,
    merges_of_scores,
    write_json,
)

# Names of PAD, BOS and EOS, by id.
SPECIAL_TOKENS = ("<pad\ufdd0>", "<bos\ufdd0>", "<eos\ufdd0>")
_SPECIAL_IDS = {name: i for i, name in enumerate(SPECIAL_TOKENS)}


def write_tokenizer(
    vocabulary: Vocabulary, vocab_size: int, max_length: int, out: epath.Path
) -> None:
    """Writes tokenizer.json and tokenizer_config.json in the folder ``out``.

    Ids of a text are those of vocabulary.encode, with vocabulary.before before them. A blank is a
    blank in the pieces of a SentencePiece model here, not ▁, so that a ▁ of the text stays one.

    Args:
      vocabulary: text's; what it is made from is read again.
      vocab_size: V of the model, at least the vocabulary's size.
      max_length: tokens that the model reads.
      out: made if it is not there.

    UserError for a vocabulary that cannot be written so, or that is larger than the model's; then
    nothing is written.
    """
    if vocabulary.size > vocab_size:
        raise UserError(
            f"vocabulary {vocabulary.spec} has {vocabulary.size} ids, the model only {vocab_size}: "
            "it is not the one that the model was trained with"
        )
    names = SPECIAL_TOKENS
    if isinstance(vocabulary, OwnIds):
        description, names = _own(vocabulary)
    elif isinstance(vocabulary, Bytes):
        description = _bytes()
    elif isinstance(vocabulary, SentencePiece):
        description = _sentencepiece(vocabulary)
    elif isinstance(vocabulary, HuggingFace):
        description = _hugging_face(vocabulary)
    else:
        raise UserError(f"vocabulary {vocabulary.spec} cannot be written as a {FILE}")
    pad, bos, eos = names
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": bos,
        "eos_token": eos,
        "pad_token": pad,
        "model_max_length": max_length,
        "split_special_tokens": True,
        "clean_up_tokenization_spaces": False,
    }
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / FILE, description)
    write_json(out / CONFIG, config)


def _description(model: Any, **parts: Any) -> dict[str, Any]:
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [added_token(i, name, True) for name, i in _SPECIAL_IDS.items()],
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": before([SPECIAL_TOKENS[BOS]], [BOS]),
        "decoder": None,
        **parts,
        "model": model,
    }


def _bytes() -> dict[str, Any]:
    shown = {FIRST_FREE_ID + byte: character for character, byte in BYTE_OF_CHARACTER.items()}
    vocabulary = {shown[i]: i for i in sorted(shown)}
    return _description(
        bpe(_SPECIAL_IDS | vocabulary, []), pre_tokenizer=BYTE_LEVEL, decoder=BYTE_LEVEL
    )


def _sentencepiece(vocabulary: SentencePiece) -> dict[str, Any]:
    from sentencepiece import sentencepiece_model_pb2

    proto: Any = sentencepiece_model_pb2  # Its classes are made at run time.
    model = proto.ModelProto.FromString(_content(vocabulary))
    trainer, kinds = model.trainer_spec, proto.ModelProto.SentencePiece.Type
    reason = ""
    if trainer.model_type != proto.TrainerSpec.ModelType.BPE:
        reason = "it is not one of byte pair encoding"
    elif not vocabulary.lossless:
        reason = "it normalises, adds or removes something, or has no bytes to fall back to"
    elif trainer.treat_whitespace_as_suffix:
        reason = "it writes a blank behind a word"
    else:
        named = [p.piece for p in model.pieces if p.type == kinds.USER_DEFINED and len(p.piece) > 1]
        if named:
            reason = f"it has a piece of several characters that is always kept, {named[0]!r}"
        elif any(piece.type == kinds.UNUSED for piece in model.pieces):
            reason = "it has pieces that are not to be used"
    if reason:
        raise UserError(f"vocabulary {vocabulary.spec} cannot be written as a {FILE}: {reason}")
    spelled = [piece.piece.replace(SPACE_MARK, " ") for piece in model.pieces]
    scores = {
        piece: of.score
        for piece, of in zip(spelled, model.pieces, strict=True)
        if of.type == kinds.NORMAL
    }
    return _description(
        bpe(
            _SPECIAL_IDS | {piece: FIRST_FREE_ID + i for i, piece in enumerate(spelled)},
            merges_of_scores(scores),
            byte_fallback=True,
        ),
        decoder={"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
    )


def _hugging_face(vocabulary: HuggingFace) -> dict[str, Any]:
    there = json.loads(_content(vocabulary))
    model, added = there["model"], there.get("added_tokens") or []
    # Files from before 2020 do not say which kind it is.
    if model.get("type", "BPE") != "BPE":
        raise UserError(
            f"vocabulary {vocabulary.spec} cannot be written as a {FILE} with other ids: its model "
            f"is {model['type']}, not BPE"
        )
    moved = {piece: FIRST_FREE_ID + i for piece, i in model["vocab"].items()}
    # Here all of its tokens are text's: none is special any more.
    kept = [token | {"id": FIRST_FREE_ID + token["id"], "special": False} for token in added]
    return _description(
        model | {"type": "BPE", "vocab": _SPECIAL_IDS | moved},
        added_tokens=[*_description(None)["added_tokens"], *kept],
        normalizer=there.get("normalizer"),
        pre_tokenizer=there.get("pre_tokenizer"),
        decoder=there.get("decoder"),
    )


def _own(vocabulary: OwnIds) -> tuple[dict[str, Any], tuple[str, str, str]]:
    """Its own file, in which only what the run puts before a text is put there, and names of PAD,
    BOS and EOS; what fills up rows is the end, as where a model has no token for it."""
    there = json.loads((epath.Path(vocabulary.spec.removeprefix(OWN)) / FILE).read_text())
    named = {i: piece for piece, i in piece_ids(there).items()}
    added = there.get("added_tokens") or []
    bos, eos = named[vocabulary.bos], named[vocabulary.eos]
    listed = {token["id"] for token in added}
    ends = (vocabulary.bos, vocabulary.eos)
    tokens = [token | {"special": token["special"] or token["id"] in ends} for token in added]
    tokens += [added_token(i, named[i], True) for i in dict.fromkeys(ends) if i not in listed]
    changed = {
        "added_tokens": sorted(tokens, key=lambda token: int(token["id"])),
        "post_processor": before([named[i] for i in vocabulary.before], vocabulary.before),
        "truncation": None,
        "padding": None,
    }
    return there | changed, (eos, bos, eos)


def _content(vocabulary: Vocabulary) -> bytes:
    path = vocabulary_file(vocabulary.spec)
    assert path is not None, vocabulary.spec
    return path.read_bytes()
