"""Tokenizers that keep their own ids: `own:DIR`."""

import json
import pathlib
from typing import Any

import numpy as np
import pytest
import tokenizers
from etils import epath
from helpers import small_config, write_pile
from hypothesis import given
from tokenizers_of_text import (
    SMALL_PIECES,
    TEXT,
    any_text,
    llama_like,
    odd_text,
    trained_byte_level,
    write_own,
)

from looped_jax.data.preparation import prepare
from looped_jax.data.rows import EOS
from looped_jax.data.run_data import resolve
from looped_jax.data.vocabulary import Vocabulary, load_vocabulary, vocabulary_fingerprint
from looped_jax.errors import UserError

END = "<|endoftext|>"


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    folder = tmp_path_factory.mktemp("own") / "gpt"
    return load_vocabulary(f"own:{write_own(folder, trained_byte_level(), eos_token=END)}")


@pytest.fixture(scope="module", params=[True, False], ids=["prefix", "no prefix"])
def marked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    folder = tmp_path_factory.mktemp("own") / f"llama{request.param}"
    named = {"bos_token": {"content": "<s>", "lstrip": False}, "eos_token": "</s>"}
    return load_vocabulary(f"own:{write_own(folder, llama_like(request.param), **named)}")


def file_of(vocabulary: Vocabulary) -> pathlib.Path:
    return pathlib.Path(vocabulary.spec.removeprefix("own:")) / "tokenizer.json"


def test_ids_are_the_files_own(byte_level: Vocabulary, marked: Vocabulary) -> None:
    for vocabulary in (byte_level, marked):
        theirs = tokenizers.Tokenizer.from_file(str(file_of(vocabulary)))
        expected = theirs.encode(TEXT, add_special_tokens=False).ids
        assert vocabulary.encode(TEXT).tolist() == expected
        assert vocabulary.size == theirs.get_vocab_size()
    # Where there is no BOS, documents begin with what stood between them.
    assert (byte_level.bos, byte_level.eos, byte_level.first) == (0, 0, 0)
    assert (marked.bos, marked.eos) == (1, 2)


@given(any_text)
def test_text_survives_the_round_trip_and_never_becomes_a_special_token(
    byte_level: Vocabulary, text: str
) -> None:
    assert byte_level.lossless
    for said in (text, text + END + text):
        ids = byte_level.encode(said)
        assert byte_level.decode(ids) == said
        assert byte_level.bytes_of_id[ids].sum() == len(said.encode())
        assert byte_level.eos not in ids


@given(odd_text)
def test_bytes_behind_the_pieces_of_a_sentencepiece_model_are_known(
    marked: Vocabulary, text: str
) -> None:
    # A ▁ of the text is read as a blank, and one is put in front: so it is not lossless.
    assert not marked.lossless
    ids = marked.encode(text)
    front = " " if text and "Prepend" in file_of(marked).read_text() else ""
    assert marked.decode(ids) == front + text.replace("▁", " ")
    assert marked.bytes_of_id[ids].sum() == len(marked.decode_bytes(ids))
    assert not {0, 1, 2} & set(ids.tolist())


def test_special_tokens_have_no_bytes_and_other_added_ones_are_text(tmp_path: pathlib.Path) -> None:
    described = json.loads(trained_byte_level())
    count = len(described["model"]["vocab"])
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    described["added_tokens"] += [
        {"id": count, "content": "<|im_start|>", **flags, "special": True},
        {"id": count + 1, "content": "\t\t", **flags, "special": False},
    ]
    own = load_vocabulary(f"own:{write_own(tmp_path, described, eos_token=END)}")
    assert own.size == count + 2
    assert own.encode("\t\t").tolist() == [count + 1]
    assert count not in own.encode("a<|im_start|>b")
    assert own.bytes_of_id[[own.eos, count, count + 1]].tolist() == [0, 0, 2]
    assert own.decode([own.eos, count, count + 1]) == "\t\t"


def test_an_end_that_the_file_does_not_call_special_is_no_text_either(
    tmp_path: pathlib.Path,
) -> None:
    described = json.loads(trained_byte_level())
    described["added_tokens"][0]["special"] = False
    own = load_vocabulary(f"own:{write_own(tmp_path, described, eos_token=END)}")
    assert own.eos not in own.encode(f"a{END}b")


def test_a_tokenizer_without_some_bytes_is_known_to_be_lossy(tmp_path: pathlib.Path) -> None:
    described = json.loads(trained_byte_level())
    vocabulary = described["model"]["vocab"]
    vocabulary["none"] = vocabulary.pop("Ą")  # Byte 0x04, which SmolLM lacks, too.
    own = load_vocabulary(f"own:{write_own(tmp_path, described, eos_token=END)}")
    assert not own.lossless
    assert own.decode(own.encode("a\x04b")) == "ab"


def test_the_fingerprint_is_of_the_file_and_its_ends(tmp_path: pathlib.Path) -> None:
    folders = {}
    for name, config in (
        ("one", {"eos_token": "</s>"}),
        ("copy", {"eos_token": "</s>", "chat_template": "{{ x }}"}),
        ("other", {"bos_token": "<s>", "eos_token": "</s>"}),
    ):
        folders[name] = f"own:{write_own(tmp_path / name, llama_like(), **config)}"
    found = {name: vocabulary_fingerprint(spec) for name, spec in folders.items()}
    assert found["one"] == found["copy"] != found["other"]
    for name, spec in folders.items():
        assert load_vocabulary(spec).fingerprint == found[name]


@pytest.mark.parametrize(
    ("change", "config", "message"),
    [
        ({}, {}, "says no eos_token; write it there"),
        ({}, {"eos_token": "<end>"}, "eos_token '<end>' of tokenizer_config.json is not in"),
        (
            {"decoder": {"type": "BPEDecoder", "suffix": "</w>"}},
            {"eos_token": END},
            "is neither byte-level",
        ),
        ({"model": {"type": "BPE"}}, {"eos_token": END}, "has no valid tokenizer.json"),
        (
            {"added_tokens": [{"id": 900, "content": "<e>", "special": True}]},
            {"eos_token": "<e>"},
            "has no valid tokenizer.json",
        ),
    ],
)
def test_bad_folders_are_named(
    change: dict[str, Any], config: dict[str, Any], message: str, tmp_path: pathlib.Path
) -> None:
    write_own(tmp_path, {**json.loads(trained_byte_level()), **change}, **config)
    with pytest.raises(UserError, match=message) as raised:
        load_vocabulary(f"own:{tmp_path}")
    assert "\n" not in str(raised.value)


def test_an_added_token_that_is_read_with_another_id_is_refused(tmp_path: pathlib.Path) -> None:
    described = json.loads(trained_byte_level())
    described["added_tokens"].append({**described["added_tokens"][0], "id": 900, "content": "<e>"})
    write_own(tmp_path, described, eos_token="<e>")
    with pytest.raises(UserError, match="says that '<e>' is 900, but"):
        load_vocabulary(f"own:{tmp_path}")


def test_what_is_missing_is_named(tmp_path: pathlib.Path) -> None:
    for spec in (f"own:{tmp_path}", "own:"):
        with pytest.raises(UserError, match=r"there is no .*tokenizer.json; give a folder"):
            load_vocabulary(spec)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"there is no .*tokenizer_config.json"):
        vocabulary_fingerprint(f"own:{tmp_path}")


def test_rows_are_prepared_with_own_ids_and_an_end_that_is_id_0(
    byte_level: Vocabulary, tmp_path: pathlib.Path
) -> None:
    write_pile(tmp_path / "pile")
    keys = dict(data__task="text", data__length=32, data__vocabulary=byte_level.spec)
    config = small_config(**keys, data__path=str(tmp_path / "pile"), prepare__workers=1)
    manifest = prepare(config, epath.Path(tmp_path / "out"))
    assert manifest.recipe["vocabulary"] == {
        "name": byte_level.spec,
        "size": byte_level.size,
        "sha256": byte_level.fingerprint,
    }
    prepared = small_config(**keys, data__path=str(tmp_path / "out"))
    for of in (config, prepared):
        source = resolve(of).source("validation")
        rows = source.rows(np.arange(source.num_rows))
        real = rows["segment_ids"] > 0
        begins = real & (rows["positions"] == 0)
        # A document that goes on in another row begins there with a token of its own.
        documents = len(np.unique(rows["document"][real]))
        assert (rows["tokens"][begins] == 0).sum() == documents
        assert (rows["targets"][real] == 0).sum() == documents
        # Id 0 is said and read, and has no bytes; elsewhere it only fills up rows.
        assert rows["loss_weights"][real].all() and not rows["loss_weights"][~real].any()
        assert not rows["target_bytes"][rows["targets"] == 0].any()
        said = byte_level.decode_bytes(rows["targets"][real])
        assert rows["target_bytes"].sum() == len(said)
    keys["data__vocabulary"] = "bytes"
    changed = small_config(**keys, data__path=str(tmp_path / "out"))
    with pytest.raises(UserError, match=r"is not the vocabulary that .* was prepared with"):
        resolve(changed)


def test_pieces_that_are_spelled_as_bytes_are_bytes(marked: Vocabulary) -> None:
    assert marked.pieces[SMALL_PIECES.index("<0xE2>")] == b"\xe2"
    assert marked.pieces[SMALL_PIECES.index("▁again")] == b" again"
    assert marked.pieces[EOS] == b""
