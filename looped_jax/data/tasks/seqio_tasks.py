"""Every synthetic task as a registered seqio Task of the same name.

Importing this module imports TensorFlow; training never does. A Task yields text `inputs` and
`targets` and their token ids, from the same examples as the trainer with the same seed.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from looped_jax.data.tasks.base import BLOCK, SPLITS
from looped_jax.data.tasks.registry import get_task, task_names

# The sizes of the paper's p-hop data (section 2.2), for every task.
NUM_EXAMPLES = {"train": 4_000_000, "validation": 262_144, "test": 262_144}


class SeqioVocabulary(seqio.Vocabulary):
    """A vocabulary of ours, of a task or of text, for seqio: ids as the trainer uses them."""

    def __init__(self, vocabulary: Any):
        super().__init__()
        self._vocabulary = vocabulary

    @property
    def bos_id(self) -> int:
        return int(self._vocabulary.bos)

    @property
    def eos_id(self) -> int:
        return int(self._vocabulary.eos)

    @property
    def unk_id(self) -> int | None:
        return None

    @property
    def _base_vocab_size(self) -> int:
        return self._vocabulary.size

    def _encode(self, s: str) -> list[int]:
        return list(self._vocabulary.encode(s))

    def _decode(self, ids: list[int]) -> str:
        return self._vocabulary.decode(np.asarray(ids))

    def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
        def encode(text: tf.Tensor) -> np.ndarray:
            return np.array(self._encode(text.numpy().decode()), dtype=np.int32)

        ids = tf.py_function(encode, [s], tf.int32)
        return tf.ensure_shape(ids, [None])

    def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
        return tf.py_function(lambda i: self._decode(i.numpy().tolist()), [ids], tf.string)


def register(name: str, seed: int = 0) -> seqio.Task:
    """Registers the task of this name (any member of a family) and returns it."""
    if name in seqio.TaskRegistry.names():
        return seqio.TaskRegistry.get(name)
    vocabulary = SeqioVocabulary(get_task(name).vocabulary)

    def dataset(split: str, shuffle_files: bool, seed_: int | None = None) -> tf.data.Dataset:
        del shuffle_files, seed_  # Examples are independent draws already.

        def texts() -> Iterator[dict[str, str]]:
            for start in range(0, NUM_EXAMPLES[split], BLOCK):
                stop = min(start + BLOCK, NUM_EXAMPLES[split])
                yield from get_task(name).texts(seed, split, np.arange(start, stop))

        spec = {key: tf.TensorSpec((), tf.string) for key in ("inputs", "targets")}
        return tf.data.Dataset.from_generator(texts, output_signature=spec)

    return seqio.TaskRegistry.add(
        name,
        source=seqio.FunctionDataSource(
            dataset_fn=lambda split, shuffle_files, seed=None: dataset(split, shuffle_files, seed),
            splits=SPLITS,
            num_input_examples=NUM_EXAMPLES,
        ),
        preprocessors=[seqio.preprocessors.tokenize],
        output_features={
            key: seqio.Feature(vocabulary, add_eos=False, dtype=tf.int32)
            for key in ("inputs", "targets")
        },
    )


for _name in task_names():
    register(_name)
