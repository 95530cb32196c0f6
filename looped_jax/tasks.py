"""Lists tasks and prints their examples.

python -m looped_jax.tasks --list
python -m looped_jax.tasks --task=addition --split=train --num=3 --seed=0
python -m looped_jax.tasks --task=svamp --split=validation --num=3 --data_dir=$EVALS_DIR
python -m looped_jax.tasks --task=varassign_depth0_math --style=line --documents --num=50000

A downstream task is printed without exemplars, as its default style (or --style) asks it; what an
exemplar would answer is its target. Its examples are in the order of its files, whatever the seed.
One that is also a synthetic task is printed as that one unless --style is given. With --documents a
line is a document to train a language model on, `prompt` (read, not trained on) and `text`, just as
the task is asked and to be answered.
"""

import json
import sys
from typing import Any

import numpy as np

from looped_jax.config import cli
from looped_jax.data.tasks import get_task, task_names
from looped_jax.data.tasks.base import SPLITS
from looped_jax.data.tasks.downstream import TASKS
from looped_jax.data.tasks.downstream.base import DownstreamTask
from looped_jax.data.tasks.downstream.example import Example
from looped_jax.data.tasks.downstream.prompts import Style
from looped_jax.errors import UserError, nearest

_FLAGS = cli.Flags()
_LIST = _FLAGS.bool("list", False, "Print one task name a line.")
_TASK = _FLAGS.string("task", "", "Task to print examples of.")
_SPLIT = _FLAGS.string("split", "train", "train, validation or test.")
_NUM = _FLAGS.integer("num", 10, "Number of examples.", lower_bound=1)
_SEED = _FLAGS.integer("seed", 0, "Seed of the examples.", lower_bound=0)
_STYLE = _FLAGS.string("style", "", "How a downstream task is asked; empty: its default.")
_DOCUMENTS = _FLAGS.bool("documents", False, "Print documents of a downstream task.")
_DATA_DIR = _FLAGS.path("data_dir", "", "Folder of a downstream task's files.")


def main(overrides: dict[str, str]) -> None:
    """Prints names, or JSON lines with `inputs` and `targets`, or documents."""
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
    if (_DOCUMENTS.value or _STYLE.value) and _TASK.value not in TASKS:
        flag = "--documents" if _DOCUMENTS.value else "--style"
        near = nearest(_TASK.value, list(TASKS))
        raise UserError(f"{flag} is for downstream tasks; {_TASK.value!r} is none{near}")
    for example in documents() if _DOCUMENTS.value else examples(_TASK.value, names):
        sys.stdout.write(json.dumps(example) + "\n")


def examples(name: str, names: list[str]) -> list[dict[str, str]]:
    """The examples that the flags ask for, as text."""
    task = TASKS.get(name)
    if task is None or (task.generate is not None and not _STYLE.value):
        try:
            synthetic = get_task(name)
        except UserError as error:
            if near := nearest(name, names):
                raise UserError(f"no task {name!r}{near}") from error
            raise
        return synthetic.texts(_SEED.value, _SPLIT.value, np.arange(_NUM.value))
    style, asked = asked_in_style(task)
    return [{"inputs": style.question(e), "targets": style.answer(e)} for e in asked]


def documents() -> list[dict[str, Any]]:
    """The same of a downstream task, as what a language model trains on (docs/data.md)."""
    style, asked = asked_in_style(TASKS[_TASK.value])
    return [
        {"prompt": question, "text": answer, "meta": {"pile_set_name": _TASK.value}}
        for question, answer in map(style.question_and_answer, asked)
    ]


def asked_in_style(task: DownstreamTask) -> tuple[Style, list[Example]]:
    """The style that the flags ask for, and the examples. UserError for one it does not have."""
    name = _STYLE.value or "default"
    if name not in task.styles:
        known = ", ".join(task.styles)
        raise UserError(f"task {task.name} has no style {name!r}; it has {known}")
    examples = task.examples(_SPLIT.value, _DATA_DIR.value, _NUM.value)[: _NUM.value]
    return task.styles[name], examples


if __name__ == "__main__":
    cli.run(main, _FLAGS)
