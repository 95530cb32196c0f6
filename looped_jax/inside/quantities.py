"""What of a synthetic task's example could stand in a state while the answer is found: the hops of
p-hop, partial products of a composition, the variable behind an alias. Probes look for it."""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np

from looped_jax.data.rows import FIRST_FREE_ID
from looped_jax.data.tasks.base import Examples, SyntheticTask
from looped_jax.data.tasks.group import GroupComposition
from looped_jax.data.tasks.phop import PHop
from looped_jax.data.tasks.varassign import VARIABLES, VariableAssignment

MOST_PLACES = 64  # Of more than these places a probe would see each too seldom.


@dataclasses.dataclass(frozen=True)
class Quantity:
    """label_N: of each example a class, 0 … classes - 1."""

    name: str
    label_N: np.ndarray
    classes: int


def quantities(task: SyntheticTask, examples: Examples) -> list[Quantity]:
    """Of tasks that are known here what is on the way to the answer, then the answer's first token;
    of others this alone."""
    found: list[Quantity] = []
    for kind, of_kind in _OF_KIND.items():
        if isinstance(task, kind):
            found = of_kind(task, examples)
    answer_N = examples.answers_NA[:, 0] - FIRST_FREE_ID
    return [*found, Quantity("answer", answer_N, task.vocabulary.size - FIRST_FREE_ID)]


def _of_p_hop(task: PHop, examples: Examples) -> list[Quantity]:
    """The place, from the front, and the character of each hop."""
    sequence_NS = examples.inputs_NS - FIRST_FREE_ID
    count, length = sequence_NS.shape
    letters = task.vocabulary.size - FIRST_FREE_ID
    rows, index_S = np.arange(count), np.arange(length)
    place_N = np.full(count, length - 1)
    found = []
    for hop in range(1, task.hops + 1):
        here_N1 = sequence_NS[rows, place_N][:, None]
        # The token behind the latest earlier one that is the same.
        earlier_NS = (sequence_NS[:, :-1] == here_N1) & (index_S[1:] <= place_N[:, None])
        place_N = np.max(np.where(earlier_NS, index_S[1:], -1), axis=1)
        assert np.all(place_N >= 0), "instances have all their hops"
        if length <= MOST_PLACES:
            found.append(Quantity(f"place of hop {hop}", place_N, length))
        if hop < task.hops:  # The last one's is the answer.
            found.append(Quantity(f"character of hop {hop}", sequence_NS[rows, place_N], letters))
    return found


def _of_composition(task: GroupComposition, examples: Examples) -> list[Quantity]:
    """The products of the first and of the last 2, 3, … elements, but for all of them."""
    element_NS = examples.inputs_NS - FIRST_FREE_ID
    length, order = element_NS.shape[1], len(task.table)

    def product(first: int, end: int) -> np.ndarray:
        columns = (element_NS[:, i] for i in range(first, end))
        found: np.ndarray = functools.reduce(lambda g_N, h_N: task.table[g_N, h_N], columns)
        return found

    ahead = [Quantity(f"first {m}", product(0, m), order) for m in range(2, length)]
    behind = [Quantity(f"last {m}", product(length - m, length), order) for m in range(2, length)]
    return [*ahead, *behind]


def _of_assignment(task: VariableAssignment, examples: Examples) -> list[Quantity]:
    """The letter asked for and its line; at depth 1 also those of the letter it stands for."""
    inputs_NS = examples.inputs_NS
    asked_N1 = inputs_NS[:, -2:-1]
    lines_NVL = inputs_NS[:, 1:-3].reshape(len(inputs_NS), -1, 4)
    letters_NV, right_NV = lines_NVL[..., 0], lines_NVL[..., 2]
    line_N = np.argmax(letters_NV == asked_N1, axis=1)
    first = task.vocabulary.id("a")
    found = [Quantity("letter asked for", asked_N1[:, 0] - first, 26)]
    if task.depth == 0:
        return [*found, Quantity("its line", line_N, VARIABLES)]
    behind_N1 = np.take_along_axis(right_NV, line_N[:, None], axis=1)
    behind_line_N = np.argmax(letters_NV == behind_N1, axis=1)
    return [
        *found,
        Quantity("its line", line_N - VARIABLES, VARIABLES),
        Quantity("letter it stands for", behind_N1[:, 0] - first, 26),
        Quantity("that letter's line", behind_line_N, VARIABLES),
    ]


_OF_KIND: dict[type[SyntheticTask], Callable[..., list[Quantity]]] = {
    PHop: _of_p_hop,
    GroupComposition: _of_composition,
    VariableAssignment: _of_assignment,
}
