"""Text from seqio: any Task or Mixture as a source to prepare, and the Task `pile`.

Importing this module imports TensorFlow; training never does.
"""

import hashlib
import importlib
import json
import os
from collections.abc import Iterator
from typing import Any

import seqio
import tensorflow as tf

import looped_jax.data.tasks.seqio_tasks as seqio_tasks
from looped_jax.data.documents import Block, Shards, Source, cut_blocks, parse
from looped_jax.data.vocabulary import load_vocabulary
from looped_jax.errors import UserError

# Raw text fields, the first that an example has; a pair of them is joined by a blank.
FIELDS = (("text",), ("inputs_pretokenized", "targets_pretokenized"), ("targets_pretokenized",))
PILE_FILES = {
    "train": "train-*.jsonl.zst",
    "validation": "val.jsonl.zst",
    "test": "test.jsonl.zst",
}


class SeqioSource:
    """One split of a Task or Mixture, in its own order, as JSON lines."""

    def __init__(self, name: str, split: str):
        self._name, self._split = name, split

    def identity(self) -> list[dict[str, Any]]:
        """See Source; reads everything once."""
        digest, size = hashlib.sha256(), 0
        for line in self._lines():
            digest.update(line)
            size += len(line)
        where = f"seqio:{self._name}/{self._split}"
        return [{"file": where, "bytes": size, "sha256": digest.hexdigest()}]

    def blocks(self, size: int, position: Any = None) -> Iterator[Block]:
        """See Source."""
        where = f"seqio:{self._name}/{self._split}"
        for block in cut_blocks(self._lines(), where, size):
            yield Block(block.where, block.first_line, block.content, read=len(block.content))

    def _lines(self) -> Iterator[bytes]:
        task = seqio.get_mixture_or_task(self._name)
        dataset = task.get_dataset(None, split=self._split, shuffle=False)
        for example in dataset.as_numpy_iterator():
            fields = next((f for f in FIELDS if all(key in example for key in f)), None)
            if fields is None:
                raise UserError(
                    f"seqio:{self._name} has no text: {', '.join(example)}; it needs `text` or "
                    "`targets_pretokenized` (a preprocessor that keeps it)"
                )
            text = " ".join(example[key].decode("utf-8") for key in fields)
            record = {"text": text, "meta": {"pile_set_name": self._name}}
            yield json.dumps(record).encode() + b"\n"


def seqio_sources(name: str, module: str = "") -> dict[str, Source]:
    """The splits of a registered Task or Mixture; ``module`` is imported to register it."""
    if module:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise UserError(f"config.prepare.seqio_module={module}: {error}") from error
    try:
        task = seqio.get_mixture_or_task(name)
    except ValueError as error:
        raise UserError(
            f"seqio knows no Task or Mixture {name!r}; name the module that registers it in "
            "--config.prepare.seqio_module"
        ) from error
    return {split: SeqioSource(name, split) for split in PILE_FILES if split in task.splits}


def register_pile(name: str, path: str, vocabulary: str = "bytes") -> seqio.Task:
    """Registers Pile-format shards as a Task: `targets` are a document's tokens.

    ``path`` may name an environment variable ($PILE_DIR), looked up when the Task is read.
    """

    def dataset(split: str, shuffle_files: bool, seed: int | None = None) -> tf.data.Dataset:
        del shuffle_files, seed  # Shards of the Pile are shuffled already.
        shards = Shards.find(os.path.expandvars(path), PILE_FILES[split])

        def examples() -> Iterator[dict[str, str]]:
            for block in shards.blocks(1 << 20):
                for document in parse(block):
                    yield {"targets": document.text, "pile_set_name": document.component}

        spec = {key: tf.TensorSpec((), tf.string) for key in ("targets", "pile_set_name")}
        return tf.data.Dataset.from_generator(examples, output_signature=spec)

    feature = seqio.Feature(
        seqio_tasks.SeqioVocabulary(load_vocabulary(vocabulary)), add_eos=True, dtype=tf.int32
    )
    return seqio.TaskRegistry.add(
        name,
        source=seqio.FunctionDataSource(
            dataset_fn=lambda split, shuffle_files, seed=None: dataset(split, shuffle_files, seed),
            splits=tuple(PILE_FILES),
        ),
        preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
        output_features={"targets": feature},
    )


register_pile("pile", "$PILE_DIR")
