"""The tokenizer inside a GGUF file, written as files that `own:DIR` reads."""

import json
import pathlib
from typing import Any

import gguf
import numpy as np
import pytest
import tokenizers
from etils import epath
from hypothesis import given
from tokenizers_of_text import (
    SMALL_KINDS,
    SMALL_PIECES,
    SMALL_SCORES,
    llama_like,
    odd_text,
    trained_byte_level,
)

from looped_jax.data.vocabulary import Vocabulary, load_vocabulary
from looped_jax.errors import UserError
from looped_jax.interop.gguf_tokenizer import write_gguf_tokenizer

SENTENCE = "I've 12345 ｘ!!\n\n  y½ DON'T."


def byte_level_fields(pre: str | None = "gpt-2", **changes: Any) -> dict[str, Any]:
    """What a GGUF file says of trained_byte_level()."""
    described = json.loads(trained_byte_level())
    pieces = sorted(described["model"]["vocab"], key=described["model"]["vocab"].get)
    fields = {
        "model": "gpt2",
        "pre": pre,
        "tokens": pieces,
        "token_type": [3] + [1] * (len(pieces) - 1),
        "merges": [" ".join(pair) for pair in described["model"]["merges"]],
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    return {**fields, **changes}


def sentencepiece_fields(**changes: Any) -> dict[str, Any]:
    """What a GGUF file says of llama_like()."""
    fields = {
        "model": "llama",
        "tokens": SMALL_PIECES,
        "scores": SMALL_SCORES,
        "token_type": SMALL_KINDS,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return {**fields, **changes}


def read(path: pathlib.Path, fields: dict[str, Any]) -> gguf.GGUFReader:
    """A GGUF file of these fields, opened."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(str(path), "llama")
    for key, value in fields.items():
        name = f"tokenizer.ggml.{key}"
        if isinstance(value, bool):
            writer.add_bool(name, value)
        elif isinstance(value, str):
            writer.add_string(name, value)
        elif isinstance(value, list):
            writer.add_array(name, value)
        elif value is not None:
            writer.add_uint32(name, value)
    writer.add_tensor("token_embd.weight", np.zeros((2, 2), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return gguf.GGUFReader(str(path))


def written(folder: pathlib.Path, fields: dict[str, Any]) -> Vocabulary:
    write_gguf_tokenizer(read(folder / "x.gguf", fields), epath.Path(folder / "out"))
    return load_vocabulary(f"own:{folder / 'out'}")


def words(vocabulary: Vocabulary, text: str = SENTENCE) -> list[str]:
    """How a text is cut into words."""
    path = pathlib.Path(vocabulary.spec.removeprefix("own:")) / "tokenizer.json"
    cutter = tokenizers.Tokenizer.from_file(str(path)).pre_tokenizer
    return [text[slice(*place)] for _, place in cutter.pre_tokenize_str(text)]


@pytest.fixture(scope="module", params=["gpt-2", "smollm", "prefix", "no prefix"])
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Vocabulary, tokenizers.Tokenizer]:
    """The tokenizer of a GGUF file, and the one that the file was made of."""
    folder = tmp_path_factory.mktemp("gguf")
    if "prefix" in request.param:
        prefix = None if request.param == "prefix" else False  # What files that say nothing mean.
        fields = sentencepiece_fields(add_space_prefix=prefix)
        theirs = tokenizers.Tokenizer.from_str(json.dumps(llama_like(prefix is None)))
    else:
        fields = byte_level_fields(request.param)
        theirs = tokenizers.Tokenizer.from_str(trained_byte_level())
        if request.param == "smollm":
            steps = tokenizers.pre_tokenizers
            theirs.pre_tokenizer = steps.Sequence(
                [steps.Digits(individual_digits=True), steps.ByteLevel(add_prefix_space=False)]
            )
    theirs.encode_special_tokens = True
    return written(folder, fields), theirs


@given(odd_text)
def test_ids_are_those_of_the_tokenizer_that_the_file_was_made_of(
    pair: tuple[Vocabulary, tokenizers.Tokenizer], text: str
) -> None:
    ours, theirs = pair
    assert ours.encode(text).tolist() == theirs.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("gpt-2", ["I", "'ve", " 12345", " ｘ", "!!", "\n\n ", " y", "½", " DON", "'", "T", "."]),
        (
            "smollm",
            ["I", "'ve", " ", *"12345", " ｘ", "!!", "\n\n ", " y", "½", " DON", "'", "T", "."],
        ),
        (
            "llama-bpe",
            ["I", "'ve", " ", "123", "45", " ｘ", "!!\n\n", " ", " y", "½", " DON", "'T", "."],
        ),
        (
            "qwen2",
            ["I", "'ve", " ", *"12345", " ｘ", "!!\n\n", " ", " y", "½", " DON", "'T", "."],
        ),
        (
            None,
            [
                "I",
                "'",
                "ve",
                " ",
                "123",
                "45",
                " ｘ",
                "!!",
                "\n\n ",
                " y",
                "½",
                " DON",
                "'",
                "T",
                ".",
            ],
        ),
    ],
)
def test_words_are_cut_by_the_rule_that_the_file_names(
    rule: str | None, expected: list[str], tmp_path: pathlib.Path
) -> None:
    assert words(written(tmp_path, byte_level_fields(rule))) == expected


def test_what_is_special_is_never_text_and_what_users_defined_comes_first(
    tmp_path: pathlib.Path,
) -> None:
    fields = byte_level_fields("llama-bpe")
    count = len(fields["tokens"])
    fields["tokens"] += ["<|im_start|>", "loopag", "[unused]"]
    fields["token_type"] += [3, 4, 5]
    del fields["bos_token_id"]
    own = written(tmp_path, fields)
    assert own.size == count + 3
    assert (own.bos, own.eos) == (0, 0)
    ids = own.encode("<|im_start|>a loopagain[unused]").tolist()
    assert count + 1 in ids and not {0, count, count + 2} & set(ids)
    assert own.decode(ids) == "<|im_start|>a loopagain[unused]"
    assert own.lossless


def test_special_tokens_that_stand_before_others_keep_their_ids(tmp_path: pathlib.Path) -> None:
    fields = byte_level_fields()
    at = len(fields["tokens"]) // 2
    fields["tokens"].insert(at, "<|im_start|>")
    fields["token_type"].insert(at, 3)
    own = written(tmp_path, fields)
    plain = written(tmp_path / "plain", byte_level_fields())
    ids = plain.encode(SENTENCE)
    assert own.encode(SENTENCE).tolist() == (ids + (ids >= at)).tolist()
    assert own.bytes_of_id[at] == 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (byte_level_fields("tekken"), "by the rule tokenizer.ggml.pre='tekken', which is none of"),
        (byte_level_fields(model="t5"), "tokenizer.ggml.model='t5' is none of gpt2, llama"),
        ({}, "the GGUF file has no tokenizer"),
        (byte_level_fields(eos_token_id=None), "does not say tokenizer.ggml.eos_token_id"),
        (byte_level_fields(eos_token_id=999), "eos_token_id=999 is no token"),
        (byte_level_fields(merges=None), "has no tokenizer.ggml.merges"),
        (byte_level_fields(token_type=[1, 2]), r"has 2 tokenizer.ggml.token_type for \d+ tokens"),
        (byte_level_fields(tokens=["a", "a"], token_type=[1, 1]), "has the token 'a' twice"),
        (sentencepiece_fields(scores=None), "has no tokenizer.ggml.scores for"),
        (sentencepiece_fields(scores=[0.0] * len(SMALL_PIECES)), "gives two pieces the score 0"),
        (sentencepiece_fields(remove_extra_whitespaces=True), "removes blanks"),
    ],
)
def test_what_cannot_be_written_is_named_and_nothing_is_written(
    fields: dict[str, Any], message: str, tmp_path: pathlib.Path
) -> None:
    reader = read(tmp_path / "x.gguf", fields)
    with pytest.raises(UserError, match=message) as raised:
        write_gguf_tokenizer(reader, epath.Path(tmp_path / "out"))
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("fields", "begins"),
    [
        (byte_level_fields(), False),
        (byte_level_fields(add_bos_token=True), True),
        (sentencepiece_fields(), True),
        (sentencepiece_fields(add_bos_token=False), False),
    ],
    ids=["byte level", "byte level, says so", "SentencePiece", "SentencePiece, says no"],
)
def test_a_prompt_begins_with_bos_where_the_file_or_its_kind_says_so(
    fields: dict[str, Any], begins: bool, tmp_path: pathlib.Path
) -> None:
    vocabulary = written(tmp_path, fields)
    assert vocabulary.before == ((vocabulary.bos,) if begins else ())
