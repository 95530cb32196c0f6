"""A vocabulary written for other programs gives them the same ids of any text."""

import json
import pathlib
from typing import Any

import pytest
import tokenizers
from etils import epath
from hypothesis import example, given, settings
from tokenizers_of_text import TEXT, any_text, llama_like, odd_text, trained_byte_level, write_own

from looped_jax.data.pieces import MAX_PART, Vocabulary
from looped_jax.data.vocabulary import load_vocabulary, train_sentencepiece
from looped_jax.errors import UserError
from looped_jax.interop.tokenizer_files import SPECIAL_TOKENS, write_tokenizer
from looped_jax.interop.tokenizer_json import before

KINDS = (
    "bytes",
    "pile_mini_32k",
    "trained",
    "byte_level",
    "composing",
    "own",
    "own_marked",
    "own_begun",
)
END = "<|endoftext|>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return tmp_path_factory.mktemp("tokenizers")


def made(kind: str, folder: pathlib.Path) -> Vocabulary:
    if kind == "trained":
        (folder / "trained.model").write_bytes(train_sentencepiece([TEXT, "▁ a  b"] * 5, 300))
        return load_vocabulary(str(folder / "trained.model"))
    if kind in ("byte_level", "composing"):
        described = json.loads(trained_byte_level())
        described["normalizer"] = {"type": "NFC"} if kind == "composing" else None
        (folder / f"{kind}.json").write_text(json.dumps(described))
        return load_vocabulary(str(folder / f"{kind}.json"))
    if kind == "own":
        return load_vocabulary(
            f"own:{write_own(folder / kind, trained_byte_level(), eos_token=END)}"
        )
    if kind in ("own_marked", "own_begun"):
        ends = {"bos_token": "<s>", "eos_token": "</s>"}
        rule = {"post_processor": before(["<s>"], [1])} if kind == "own_begun" else {}
        return load_vocabulary(f"own:{write_own(folder / kind, llama_like() | rule, **ends)}")
    return load_vocabulary(kind)


@pytest.fixture(scope="module", params=KINDS)
def pair(request: pytest.FixtureRequest, folder: pathlib.Path) -> tuple[Vocabulary, Any]:
    """A vocabulary, and what the package tokenizers makes of its files."""
    vocabulary = made(request.param, folder)
    out = epath.Path(folder / f"{request.param}_out")
    write_tokenizer(vocabulary, vocabulary.size, 64, out)
    theirs = tokenizers.Tokenizer.from_file(str(out / "tokenizer.json"))
    theirs.encode_special_tokens = True
    return vocabulary, theirs


def check_same(pair: tuple[Vocabulary, Any], text: str) -> None:
    vocabulary, theirs = pair
    expected = vocabulary.encode(text).tolist()
    # As a prompt of the run begins: with nothing, where the tokenizer itself puts nothing there.
    assert theirs.encode(text).ids == [*vocabulary.before, *expected]
    assert theirs.encode(text, add_special_tokens=False).ids == expected
    if vocabulary.lossless:
        assert theirs.decode(expected) == text


@given(any_text)
@example("▁ ")
def test_ids_of_any_text_are_the_same(pair: tuple[Vocabulary, Any], text: str) -> None:
    check_same(pair, text)


@given(odd_text)
@settings(max_examples=300)
def test_ids_of_odd_texts_are_the_same(pair: tuple[Vocabulary, Any], text: str) -> None:
    check_same(pair, text)


@pytest.mark.parametrize("text", ["a<s>b", f"a{END}b", *(f"x{name}y" for name in SPECIAL_TOKENS)])
def test_a_text_that_spells_a_special_token_is_text(
    pair: tuple[Vocabulary, Any], text: str
) -> None:
    check_same(pair, text)


@pytest.mark.parametrize("text", ["a<s>b</s>", "<pad>", f"a{END}b"])
def test_names_that_texts_may_have_are_text_without_any_setting(
    pair: tuple[Vocabulary, Any], text: str
) -> None:
    vocabulary, theirs = pair
    if vocabulary.first:  # Own ids keep own names.
        again = tokenizers.Tokenizer.from_str(theirs.to_str())
        assert again.encode(text).ids[1:] == vocabulary.encode(text).tolist()


def test_long_texts_that_are_cut_after_a_newline_have_the_same_ids(
    pair: tuple[Vocabulary, Any],
) -> None:
    check_same(pair, TEXT.replace("\n\t", "\nx") * (2 * MAX_PART // len(TEXT) + 1))


@pytest.mark.parametrize("kind", KINDS)
def test_the_config_names_the_special_tokens(kind: str, folder: pathlib.Path) -> None:
    vocabulary = made(kind, folder)
    out = epath.Path(folder / f"{kind}_named")
    write_tokenizer(vocabulary, vocabulary.size + 5, 64, out)
    config = json.loads((out / "tokenizer_config.json").read_text())
    theirs = tokenizers.Tokenizer.from_file(str(out / "tokenizer.json"))
    assert theirs.token_to_id(config["bos_token"]) == vocabulary.bos
    assert theirs.token_to_id(config["eos_token"]) == vocabulary.eos
    assert theirs.token_to_id(config["pad_token"]) == vocabulary.pad
    assert config["split_special_tokens"] and config["model_max_length"] == 64
    # What is said is read without them.
    ids = [vocabulary.bos, *vocabulary.encode("again").tolist(), vocabulary.eos]
    assert theirs.decode(ids) == "again"
    # Written again from there, it is the same: ids are then the file's own.
    again = load_vocabulary(f"own:{out}")
    assert (again.bos, again.eos) == (vocabulary.bos, vocabulary.eos)
    assert again.encode(TEXT).tolist() == vocabulary.encode(TEXT).tolist()
    assert again.lossless == vocabulary.lossless


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model_type": "unigram"}, "it is not one of byte pair encoding"),
        ({"add_dummy_prefix": True}, "it normalises, adds or removes something"),
        ({"byte_fallback": False}, "or has no bytes to fall back to"),
        ({"user_defined_symbols": ["\n", "ab"]}, "a piece of several characters that is always"),
    ],
)
def test_a_sentencepiece_model_that_cannot_be_written_is_refused_and_nothing_is_written(
    change: dict[str, Any], reason: str, tmp_path: pathlib.Path
) -> None:
    import io

    import sentencepiece

    model = io.BytesIO()
    settings = dict(
        vocab_size=290,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        unk_id=0,
        bos_id=-1,
        eos_id=-1,
        pad_id=-1,
        minloglevel=2,
    )
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT.splitlines() * 5), model_writer=model, **{**settings, **change}
    )
    (tmp_path / "x.model").write_bytes(model.getvalue())
    vocabulary = load_vocabulary(str(tmp_path / "x.model"))
    with pytest.raises(UserError, match=reason) as raised:
        write_tokenizer(vocabulary, vocabulary.size, 64, epath.Path(tmp_path / "out"))
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_a_vocabulary_larger_than_the_models_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(UserError, match="bytes has 259 ids, the model only 258"):
        write_tokenizer(load_vocabulary("bytes"), 258, 64, epath.Path(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module", params=KINDS)
def judged(request: pytest.FixtureRequest, folder: pathlib.Path) -> tuple[Vocabulary, Any]:
    """A vocabulary, and what transformers makes of its files."""
    judges = "the judge comes with the extra judges: pip install -e '.[judges]'"
    transformers: Any = pytest.importorskip("transformers", reason=judges)
    vocabulary = made(request.param, folder)
    out = epath.Path(folder / f"{request.param}_judged")
    write_tokenizer(vocabulary, vocabulary.size, 64, out)
    return vocabulary, transformers.AutoTokenizer.from_pretrained(str(out))


@given(odd_text)
@example("".join(f"a{name}b" for name in (*SPECIAL_TOKENS, "<s>", "</s>", END)))
def test_transformers_gives_the_same_ids_by_default(
    judged: tuple[Vocabulary, Any], text: str
) -> None:
    vocabulary, theirs = judged
    assert (theirs.bos_token_id, theirs.eos_token_id) == (vocabulary.bos, vocabulary.eos)
    expected = vocabulary.encode(text).tolist()
    assert theirs(text)["input_ids"] == [vocabulary.bos, *expected]
    assert theirs(text, add_special_tokens=False)["input_ids"] == expected
    said = [vocabulary.bos, *expected, vocabulary.eos]
    if vocabulary.lossless:
        assert theirs.decode(said, skip_special_tokens=True) == text
