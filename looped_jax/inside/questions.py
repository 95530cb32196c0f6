"""Many examples of a task as rows that a model reads, with the right answers and the quantities
(inside/quantities.py) of each: of a synthetic run its own tasks, of a language model variable
assignment, asked in text. N examples, T tokens."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from looped_jax.data.synthetic import SyntheticData, TaskRows
from looped_jax.data.tasks.downstream import TASKS
from looped_jax.data.tasks.downstream.example import Example
from looped_jax.data.tasks.registry import get_task
from looped_jax.data.tasks.varassign import VariableAssignment
from looped_jax.errors import UserError
from looped_jax.inference.text import pair_ids
from looped_jax.inside.opened import Opened
from looped_jax.inside.quantities import Quantity, quantities

SEED = 0  # Of the examples that a language model is asked.


@dataclasses.dataclass(frozen=True)
class Questions:
    """tokens: of each row, up to the last token of the answer that is read; targets: the next token
    of each place; answer_NT: bool, where the answer is asked for; place_N: where its first token
    is; inputs_NS: the task's own, padded."""

    task: str
    tokens: list[list[int]]
    targets: list[list[int]]
    answer_NT: np.ndarray
    place_N: np.ndarray
    inputs_NS: np.ndarray
    quantities: Sequence[Quantity]

    @property
    def distinct(self) -> int:
        """How many examples are different ones: small tasks have few."""
        return len(np.unique(self.inputs_NS, axis=0))


def questions(model: Opened, task: str, split: str, count: int) -> Questions:
    """The first examples of a split. UserError for a run that has no such task, or for a task of
    text whose way to the answer is not known."""
    data = model.run.job.data
    if isinstance(data, SyntheticData):
        return _of_rows(data.source(split, task), count)
    if task not in TASKS or not isinstance(known := _synthetic(task), VariableAssignment):
        raise UserError(
            f"what is on the way to an answer is not known of {task or 'text'}; a language model "
            "can be asked variable assignment (varassign_depth0_math, …)"
        )
    return _of_text(model, known, split, count)


def _synthetic(task: str) -> object:
    try:
        return get_task(task)
    except UserError:
        return None


def _of_rows(source: TaskRows, count: int) -> Questions:
    rows = source.rows(np.arange(count))
    examples = source.task.examples(source.seed, source.split, np.arange(count))
    lengths = np.sum(rows["segment_ids"] > 0, axis=1)

    def cut(name: str) -> list[list[int]]:
        return [row[:n].tolist() for row, n in zip(rows[name], lengths, strict=True)]

    return Questions(
        source.task.name,
        cut("tokens"),
        cut("targets"),
        rows["answer"],
        np.argmax(rows["answer"], axis=1),
        examples.inputs_NS,
        quantities(source.task, examples),
    )


def _of_text(model: Opened, task: VariableAssignment, split: str, count: int) -> Questions:
    """In the form of config.eval.style, without exemplars; an answer ends with its line."""
    style = TASKS[task.name].style(model.run.job.config.eval.style)
    indices = np.arange(count)
    tokens, targets, asked, places = [], [], [], []
    for text in task.texts(SEED, split, indices):
        question = style.question(Example("", text["inputs"], (text["targets"],)))
        context, answer = pair_ids(model.vocabulary, question, f" {text['targets']}\n")
        whole = [*context, *answer]
        # A blank goes before it, in a token of its own or not.
        blanks = sum(not model.vocabulary.decode([i]).strip() for i in answer[:1])
        tokens.append(whole[:-1])
        targets.append(whole[1:])
        asked.append(range(len(context) - 1, len(whole) - 1))
        places.append(len(context) - 1 + blanks)
    answer_NT = np.zeros((count, max(map(len, tokens))), bool)
    for row, of_row in zip(answer_NT, asked, strict=True):
        row[of_row] = True
    examples = task.examples(SEED, split, indices)
    found = quantities(task, examples)
    place_N = np.asarray(places)
    return Questions(task.name, tokens, targets, answer_NT, place_N, examples.inputs_NS, found)
