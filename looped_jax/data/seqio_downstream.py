"""The downstream tasks as seqio Tasks: text `inputs` (no exemplars, default style) and `targets`.

Importing this module imports TensorFlow; training and evaluation never do. Files are read from the
folder in the environment variable EVALS_DIR where it is set, else from TFDS; the generated
ones are registered by looped_jax.data.tasks.seqio_tasks.
"""

import os
from collections.abc import Iterator

import seqio
import tensorflow as tf

from looped_jax.data.tasks.downstream import TASKS
from looped_jax.data.tasks.seqio_tasks import SeqioVocabulary
from looped_jax.data.vocabulary import load_vocabulary

SPLITS = ("train", "validation")


def register_downstream(name: str, registered: str, vocabulary: str = "bytes") -> seqio.Task:
    """Registers downstream task ``name`` under ``registered``, with a vocabulary of text."""
    task = TASKS[name]
    style = task.style("default")

    def dataset(split: str, shuffle_files: bool, seed: int | None = None) -> tf.data.Dataset:
        del shuffle_files, seed

        def texts() -> Iterator[dict[str, str]]:
            for example in task.examples(split, os.environ.get("EVALS_DIR", "")):
                yield {
                    "id": example.id,
                    "inputs": style.question(example),
                    "targets": style.answer(example),
                }

        spec = {key: tf.TensorSpec((), tf.string) for key in ("id", "inputs", "targets")}
        return tf.data.Dataset.from_generator(texts, output_signature=spec)

    feature = seqio.Feature(
        SeqioVocabulary(load_vocabulary(vocabulary)), add_eos=False, dtype=tf.int32
    )
    return seqio.TaskRegistry.add(
        registered,
        source=seqio.FunctionDataSource(
            dataset_fn=lambda split, shuffle_files, seed=None: dataset(split, shuffle_files, seed),
            splits=SPLITS,
        ),
        preprocessors=[seqio.preprocessors.tokenize],
        output_features={"inputs": feature, "targets": feature},
    )


for _name, _task in TASKS.items():
    if _task.generate is None:
        register_downstream(_name, _name)
