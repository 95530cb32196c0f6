"""Small tokenizers of the kinds that there are, for tests of vocabularies and of exchange."""

import functools
import json
import pathlib
from typing import Any

import tokenizers
from hypothesis import strategies as st

TEXT = (
    "The loop is applied again, and again: 12 layers twice is 24.\n\tdef f(x):\n        return x\n"
)
any_text = st.text(alphabet=st.characters(exclude_categories=("Cs",)))
# What is likely to be cut otherwise: specials spelled out, runs, marks, digits, compositions.
ODD = (
    *("<s>", "</s>", "<pad>", "<unk>", "<0x41>", "<0xE2><0x96>", "<|endoftext|>", "<bos\ufdd0>"),
    *("▁", "▁▁", " ", "  ", " " * 40, "\n", "\n\n\n", "\r\n", "\t", "\x00", "\u3000", "\u2028"),
    *("1", "23", "456", "½", "٣", "e\u0301", "é", "ﬁ", "🙂", "\u200d", "漢字", "don't", "WE'LL"),
    *("again", " again", "loop", "return x", "<", ">", "|", "..."),
)
odd_text = st.lists(st.one_of(st.sampled_from(ODD), st.text(max_size=4))).map("".join)


@functools.cache
def trained_byte_level() -> str:
    """A tokenizer.json built as GPT-2's is, as text."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator([TEXT] * 4, trainer)
    return tokenizer.to_str()


def write_own(
    folder: pathlib.Path, description: str | dict[str, Any], **config: Any
) -> pathlib.Path:
    """A folder with a tokenizer.json and what tokenizer_config.json says."""
    folder.mkdir(parents=True, exist_ok=True)
    text = description if isinstance(description, str) else json.dumps(description)
    (folder / "tokenizer.json").write_text(text)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


# Pieces of a small SentencePiece model with scores, and their kinds: 2 unknown, 3 control, 6 byte.
SMALL_PIECES = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
SMALL_KINDS = [2, 3, 3, *[6] * 256]
JOINED = ("▁a", "ag", "ain", "▁ag", "▁again", "lo", "op", "loop", "▁▁", "in", "ai", "▁loop")
SINGLE = sorted(set("".join(JOINED)))
SMALL_PIECES += [*JOINED, *SINGLE]
SMALL_KINDS += [1] * (len(JOINED) + len(SINGLE))
SMALL_SCORES = [0.0] * 259 + [-float(i) for i in range(len(JOINED) + len(SINGLE))]


def llama_like(prefix: bool = True) -> dict[str, Any]:
    """A tokenizer.json as Hugging Face makes one of Llama 2's SentencePiece model."""
    vocabulary = {piece: i for i, piece in enumerate(SMALL_PIECES)}
    merges = [
        [piece[:at], piece[at:]]
        for piece in JOINED
        for at in range(1, len(piece))
        if piece[:at] in vocabulary and piece[at:] in vocabulary
    ]
    mark = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    front = [{"type": "Prepend", "prepend": "▁"}] if prefix else []
    back = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": i, "content": SMALL_PIECES[i], **flags, "special": True} for i in range(3)
        ],
        "normalizer": {"type": "Sequence", "normalizers": [*front, mark]},
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                *back,
            ],
        },
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": vocabulary,
            "merges": merges,
        },
    }
