import json
import pathlib

import pytest
import tokenizers
from hypothesis import example, given
from hypothesis import strategies as st

from looped_jax.data import vocabulary as vocabulary_module
from looped_jax.data.pieces import parts as parts_of
from looped_jax.data.rows import FIRST_FREE_ID
from looped_jax.data.vocabulary import (
    MAX_PART,
    Vocabulary,
    load_vocabulary,
    shipped_names,
    train_sentencepiece,
    vocabulary_fingerprint,
)
from looped_jax.errors import UserError

TEXT = (
    "The loop is applied again, and again: 12 layers twice is 24.\n\tdef f(x):\n        return x\n"
)
any_text = st.text(alphabet=st.characters(exclude_categories=("Cs",)))
TRICKY = ["▁", " ▁ x▁▁", "<0xE2><0x96>", "<unk><s></s>", "\x00\r\n ", "<|endoftext|>", "ﬁ e\u0301"]


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    """A small tokenizer.json built as GPT-2's is."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator([TEXT] * 4, trainer)
    path = tmp_path_factory.mktemp("vocabulary") / "tokenizer.json"
    tokenizer.save(str(path))
    return load_vocabulary(str(path))


@pytest.fixture(params=["bytes", *shipped_names(), "byte_level"])
def vocabulary(request: pytest.FixtureRequest, byte_level: Vocabulary) -> Vocabulary:
    return byte_level if request.param == "byte_level" else load_vocabulary(request.param)


def test_a_vocabulary_is_shipped_and_says_where_it_comes_from() -> None:
    assert "pile_mini_32k" in shipped_names()
    for name in shipped_names():
        provenance = json.loads((vocabulary_module.SHIPPED / f"{name}.json").read_text())
        assert provenance["size"] == load_vocabulary(name).size == 32_768
        assert provenance["command"].startswith("python -m looped_jax.vocabulary")


def round_trip(vocabulary: Vocabulary, text: str) -> None:
    ids = vocabulary.encode(text)
    assert vocabulary.decode(ids) == text
    assert vocabulary.bytes_of_id[ids].sum() == len(text.encode())
    assert all(FIRST_FREE_ID <= i < vocabulary.size for i in ids)


@pytest.mark.parametrize("name", ["bytes", "pile_mini_32k"])
def test_text_survives_the_round_trip(name: str) -> None:
    @given(any_text)
    @example("▁ ")
    def check(text: str) -> None:
        round_trip(load_vocabulary(name), text)

    check()


@given(any_text)
def test_text_survives_the_round_trip_through_a_byte_level_tokenizer(
    byte_level: Vocabulary, text: str
) -> None:
    assert byte_level.lossless
    round_trip(byte_level, text)


@pytest.mark.parametrize("text", TRICKY)
def test_texts_that_look_like_tokens_survive_too(vocabulary: Vocabulary, text: str) -> None:
    round_trip(vocabulary, text)


def test_a_long_text_is_cut_after_newlines_and_loses_nothing(vocabulary: Vocabulary) -> None:
    text = TEXT * (3 * MAX_PART // len(TEXT)) + "x" * (2 * MAX_PART)
    round_trip(vocabulary, text)
    parts = list(parts_of(text))
    assert all(0 < len(part) <= MAX_PART for part in parts)
    assert parts[0].endswith("\n")


def test_a_lone_surrogate_is_refused(vocabulary: Vocabulary) -> None:
    with pytest.raises(UnicodeEncodeError):
        vocabulary.encode("a\ud800")


def test_half_a_character_decodes_to_a_replacement() -> None:
    vocabulary = load_vocabulary("bytes")
    ids = vocabulary.encode("ä")
    assert vocabulary.decode(ids[:1]) == "\ufffd"
    assert vocabulary.decode_bytes(ids[:1]) == "ä".encode()[:1]


def test_a_trained_vocabulary_is_the_same_every_time(tmp_path: pathlib.Path) -> None:
    # 3 of ours, 1 unknown, 256 bytes, newline, and pieces.
    one, two = (train_sentencepiece([TEXT] * 5, 300) for _ in range(2))
    assert one == two
    path = tmp_path / "tiny.model"
    path.write_bytes(one)
    vocabulary = load_vocabulary(str(path))
    assert vocabulary.size == 300
    assert vocabulary.lossless
    for text in (TEXT, *TRICKY):
        round_trip(vocabulary, text)
    # Digits stay apart, and a newline is never merged.
    pieces = [vocabulary.decode_bytes([i]) for i in vocabulary.encode(TEXT)]
    assert not any(
        len(p) > 1 and any(b"0" <= bytes([c]) <= b"9" for c in p.strip()) for p in pieces
    )
    assert all(piece == b"\n" for piece in pieces if b"\n" in piece)


def test_too_little_text_for_a_vocabulary_is_said() -> None:
    with pytest.raises(UserError, match="no vocabulary of 5000 from these texts"):
        train_sentencepiece(["a b c"], 5000)


def test_a_normalising_tokenizer_is_known_to_be_lossy(
    byte_level: Vocabulary, tmp_path: pathlib.Path
) -> None:
    content = json.loads(pathlib.Path(byte_level.spec).read_text())
    content["normalizer"] = {"type": "NFC"}
    path = tmp_path / "neox.json"
    path.write_text(json.dumps(content))
    vocabulary = load_vocabulary(str(path))
    assert not vocabulary.lossless
    assert vocabulary.decode(vocabulary.encode("e\u0301")) == "\u00e9"


def test_bad_vocabularies_are_named(tmp_path: pathlib.Path) -> None:
    model, tokenizer = tmp_path / "x.model", tmp_path / "x.json"
    model.write_bytes(b"no model")
    tokenizer.write_text("{}")
    for spec, message in (
        ("pile_mini_23k", "did you mean 'pile_mini_32k'"),
        (str(tmp_path / "none.model"), "no such vocabulary"),
        (str(model), "is not a SentencePiece model"),
        (str(tokenizer), "is not a tokenizer.json"),
    ):
        with pytest.raises(UserError, match=message):
            load_vocabulary(spec)
    with pytest.raises(UserError, match="no such vocabulary"):
        vocabulary_fingerprint("nothing")


def test_a_tokenizer_that_is_not_byte_level_is_refused(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "words.json"
    tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a")).save(str(path))
    with pytest.raises(UserError, match="is not byte-level"):
        load_vocabulary(str(path))
