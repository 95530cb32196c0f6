"""Lists synthetic tasks and prints their examples.

python -m looped_jax.tasks --list
python -m looped_jax.tasks --task=addition --split=train --num=3 --seed=0
"""

import json
import sys

import numpy as np
from absl import flags

from looped_jax import cli
from looped_jax.config import UserError
from looped_jax.data.tasks import get_task, task_names

_LIST = flags.DEFINE_bool("list", False, "Print one task name a line.")
_TASK = flags.DEFINE_string("task", "", "Task to print examples of.")
_SPLIT = flags.DEFINE_string("split", "train", "train, validation or test.")
_NUM = flags.DEFINE_integer("num", 10, "Number of examples.", lower_bound=0)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the examples.", lower_bound=0)


def main(overrides: dict[str, str]) -> None:
    """Prints names, or JSON lines with `inputs` and `targets`."""
    if overrides:
        raise UserError("looped_jax.tasks takes no --config overrides")
    if _LIST.value:
        print("\n".join(task_names()))
        return
    if not _TASK.value:
        raise UserError("say --list, or --task=NAME")
    for example in get_task(_TASK.value).texts(_SEED.value, _SPLIT.value, np.arange(_NUM.value)):
        sys.stdout.write(json.dumps(example) + "\n")


if __name__ == "__main__":
    cli.run(main)
