"""Lists tasks and prints their examples.

python -m looped_jax.tasks --list
python -m looped_jax.tasks --task=addition --split=train --num=3 --seed=0
python -m looped_jax.tasks --task=svamp --split=validation --num=3 --data_dir=$EVALS_DIR

A downstream task is printed without exemplars, as its default style asks it; what an exemplar
would answer is its target. Its examples are in the order of its files, whatever the seed.
"""

import json
import sys

import numpy as np
from absl import flags

from looped_jax import cli
from looped_jax.config import UserError, nearest
from looped_jax.data.tasks import get_task, task_names
from looped_jax.data.tasks.base import SPLITS
from looped_jax.data.tasks.downstream import TASKS

_LIST = flags.DEFINE_bool("list", False, "Print one task name a line.")
_TASK = flags.DEFINE_string("task", "", "Task to print examples of.")
_SPLIT = flags.DEFINE_string("split", "train", "train, validation or test.")
_NUM = flags.DEFINE_integer("num", 10, "Number of examples.", lower_bound=0)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the examples.", lower_bound=0)
_DATA_DIR = flags.DEFINE_string("data_dir", "", "Folder of a downstream task's files.")


def main(overrides: dict[str, str]) -> None:
    """Prints names, or JSON lines with `inputs` and `targets`."""
    if overrides:
        raise UserError("looped_jax.tasks takes no --config overrides")
    names = list(dict.fromkeys((*task_names(), *TASKS)))
    if _LIST.value:
        print("\n".join(names))
        return
    if not _TASK.value:
        raise UserError("say --list, or --task=NAME")
    if _SPLIT.value not in SPLITS:
        raise UserError(f"split {_SPLIT.value!r} is not one of {', '.join(SPLITS)}")
    for example in examples(_TASK.value, names):
        sys.stdout.write(json.dumps(example) + "\n")


def examples(name: str, names: list[str]) -> list[dict[str, str]]:
    """The examples that the flags ask for, as text."""
    task = TASKS.get(name)
    if task is None or task.generate is not None:
        try:
            synthetic = get_task(name)
        except UserError as error:
            if near := nearest(name, names):
                raise UserError(f"no task {name!r}{near}") from error
            raise
        return synthetic.texts(_SEED.value, _SPLIT.value, np.arange(_NUM.value))
    style = task.style("default")
    return [
        {"inputs": style.question(example), "targets": style.answer(example)}
        for example in task.examples(_SPLIT.value, _DATA_DIR.value)[: _NUM.value]
    ]


if __name__ == "__main__":
    cli.run(main)
