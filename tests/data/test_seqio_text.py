"""Text through seqio: Tasks as sources, and shards of the Pile as a Task."""

import json
import pathlib
import sys

import numpy as np
import pytest
from etils import epath
from helpers import NEEDS_TENSORFLOW, small_config, write_pile

from looped_jax.data import preparation
from looped_jax.data.documents import Shards, parse
from looped_jax.data.rows import EOS
from looped_jax.data.run_data import resolve
from looped_jax.data.vocabulary import Bytes
from looped_jax.errors import UserError

seqio = pytest.importorskip("seqio", reason=NEEDS_TENSORFLOW)

MODULE = """
import functools
import seqio, tensorflow as tf

TEXTS = {"train": ["first", "zweiter ⊗"] * 20, "validation": ["held out"]}

def dataset(split, shuffle_files, seed=None):
    return tf.data.Dataset.from_tensor_slices({"text": TEXTS[split]})

vocabulary = seqio.ByteVocabulary()
seqio.TaskRegistry.add(
    "my_text",
    source=seqio.FunctionDataSource(dataset, splits=("train", "validation")),
    preprocessors=[functools.partial(seqio.preprocessors.rekey, key_map={"targets": "text"}),
                   seqio.preprocessors.tokenize],
    output_features={"targets": seqio.Feature(vocabulary, add_eos=False)},
)
"""


def test_a_seqio_task_is_prepared_like_shards(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_tasks.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    config = small_config(
        data__task="text",
        data__length=16,
        data__path="seqio:my_text",
        prepare__seqio_module="my_tasks",
        prepare__workers=1,
    )
    preparation.prepare(config, epath.Path(tmp_path / "out"))
    own = small_config(data__task="text", data__length=16, data__path=str(tmp_path / "out"))
    source = resolve(own).source("train")
    assert source.components == ("my_text",)
    rows = source.rows(np.arange(source.num_rows))
    texts = sys.modules["my_tasks"].TEXTS["train"]
    assert rows["target_bytes"].sum() == sum(len(text.encode()) for text in texts)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert set(manifest["splits"]) == {"train", "validation"}
    (entry,) = manifest["recipe"]["splits"]["train"]["sources"]
    assert entry["file"] == "seqio:my_text/train"


def test_unknown_seqio_tasks_and_modules_are_named(tmp_path: pathlib.Path) -> None:
    for overrides, message in (
        (dict(data__path="seqio:nothing"), "seqio knows no Task or Mixture 'nothing'"),
        (
            dict(data__path="seqio:nothing", prepare__seqio_module="no_such_module"),
            "seqio_module=no_such_module: No module",
        ),
    ):
        config = small_config(data__task="text", data__length=16, **overrides)
        with pytest.raises(UserError, match=message):
            preparation.prepare(config, epath.Path(tmp_path / "out"))


def test_shards_of_the_pile_are_a_seqio_task(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pile(tmp_path)
    monkeypatch.setenv("PILE_DIR", str(tmp_path))
    from looped_jax.data.seqio_text import register_pile  # And `pile` itself is there then.

    task = seqio.get_mixture_or_task("pile")
    dataset = task.get_dataset(None, split="validation", shuffle=False)
    shards = Shards.find(str(tmp_path), "val.jsonl.zst")
    documents = [d for block in shards.blocks(1 << 20) for d in parse(block)]
    examples = list(dataset.as_numpy_iterator())
    assert len(examples) == len(documents)
    for example, document in zip(examples, documents, strict=True):
        expected = [*Bytes().encode(document.text), EOS]
        np.testing.assert_array_equal(example["targets"], expected)
        assert example["pile_set_name"].decode() == document.component
    other = register_pile("pile_32k", "$PILE_DIR", "pile_mini_32k")
    ids = next(iter(other.get_dataset(None, split="test").as_numpy_iterator()))["targets"]
    assert ids[-1] == EOS


def test_downstream_tasks_are_seqio_tasks(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import looped_jax.data.seqio_downstream  # noqa: F401 (registers them)
    from looped_jax.data.tasks.downstream import TASKS

    assert set(TASKS) <= set(seqio.TaskRegistry.names())
    record = {"id": "1", "question": "1 and 1?", "answers": ["2"], "split": "eval"}
    (tmp_path / "svamp.jsonl").write_text(json.dumps(record) + "\n")
    monkeypatch.setenv("EVALS_DIR", str(tmp_path))
    dataset = seqio.get_mixture_or_task("svamp").get_dataset(None, split="validation")
    (example,) = dataset.as_numpy_iterator()
    assert example["inputs_pretokenized"].decode() == "Question: 1 and 1?\nAnswer:"
    assert Bytes().decode(example["inputs"]) == "Question: 1 and 1?\nAnswer:"
    assert Bytes().decode(example["targets"]) == "2"
