"""Downstream tasks from TensorFlow Datasets. Importing this module imports TensorFlow."""

from collections.abc import Callable
from typing import Any

import tensorflow_datasets as tfds

from looped_jax.data.tasks.downstream.example import Example
from looped_jax.errors import UserError


def load(
    task: str, builder: str, split: str, to_example: Callable[[Any], Example | None], where: str
) -> list[Example]:
    """All examples of a split, in TFDS's order; UserError if the data is not to be had."""
    try:
        dataset = tfds.load(builder, split=split, shuffle_files=False)
    except Exception as error:  # Whatever its download layer raises.
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(
            f"task {task}: TFDS has no {builder} here and could not get it ({reason}). On a "
            f"machine with a network: tfds build {builder}; or set --config.eval.data_dir "
            f"and {where}"
        ) from error
    examples = (to_example(features) for features in tfds.as_numpy(dataset))
    return [example for example in examples if example is not None]
