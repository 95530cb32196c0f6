"""What the state after each loop holds, over many examples of a synthetic task: the answer, were it
read out there, and the quantities on the way to it, as linear probes find them; beside it the same
model with fresh parameters and the paper's construction for the task.

All of it at the place where the answer is asked for. Where a plan has no loops, layers stand in
their place. L loops, N examples, D width, Q quantities.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from looped_jax.data.synthetic import SyntheticData, TaskRows
from looped_jax.errors import UserError
from looped_jax.inside import probes
from looped_jax.inside.opened import Opened
from looped_jax.inside.quantities import Quantity, quantities
from looped_jax.theory.learned import construction_of
from looped_jax.training.state import init_state

ROWS = 256  # That go through the model at once.


@dataclasses.dataclass(frozen=True)
class Decoded:
    """Accuracies from 0 to 1.

    read_L: exact match of what the model would say had it stopped there.
    probed_QL, fresh_QL, built_QL: of probes on its states, on those of the same model with fresh
      parameters, and on the construction's [Q, its own loops]; None where the task has none.
    frequent_Q: of always saying the most frequent class.
    """

    names: tuple[str, ...]
    read_L: np.ndarray
    probed_QL: np.ndarray
    fresh_QL: np.ndarray
    built_QL: np.ndarray | None
    frequent_Q: np.ndarray
    examples: int

    def as_json(self) -> dict[str, Any]:
        """Lists of what it has."""
        found = dataclasses.asdict(self)
        return {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in found.items()}


def decoded(model: Opened, task: str = "", examples: int = 2048) -> Decoded:
    """Of a run of a synthetic task: probes are fitted to ``examples`` of its validation split and
    tried on as many of its test split. UserError for a run on text."""
    data = model.run.job.data
    if not isinstance(data, SyntheticData):
        raise UserError("probes are for synthetic tasks: what is on the way to an answer is known")
    fit, tried = (data.source(split, task) for split in ("validation", "test"))
    fit_Q, try_Q = _quantities(fit, examples), _quantities(tried, examples)
    fresh = dataclasses.replace(model, params=_fresh(model))
    read_L, try_LND = _answered(model, tried, examples)

    def probed(fit_LND: np.ndarray, try_LND: np.ndarray) -> np.ndarray:
        return probes.accuracies((fit_LND, fit_Q), (try_LND, try_Q))

    built, try_built = _built(fit, examples), _built(tried, examples)
    frequent = [probes.most_frequent(*both) for both in zip(fit_Q, try_Q, strict=True)]
    return Decoded(
        names=tuple(quantity.name for quantity in fit_Q),
        read_L=read_L,
        probed_QL=probed(_answered(model, fit, examples)[1], try_LND),
        fresh_QL=probed(*(_answered(fresh, of, examples)[1] for of in (fit, tried))),
        built_QL=None if built is None or try_built is None else probed(built, try_built),
        frequent_Q=np.asarray(frequent),
        examples=examples,
    )


def _quantities(source: TaskRows, count: int) -> list[Quantity]:
    examples = source.task.examples(source.seed, source.split, np.arange(count))
    return quantities(source.task, examples)


def _fresh(model: Opened) -> Any:
    """Parameters as a run begins with, of another seed than its own."""
    job = model.run.job
    return init_state(job.model, job.optimizer, job.config.seed + 1, job.layout).evaluated


def _answered(model: Opened, source: TaskRows, count: int) -> tuple[np.ndarray, np.ndarray]:
    """read_L, and states_LND where the (first token of the) answer is asked for."""
    right, states = [], []
    for rows in _batches(source, count):
        lengths = np.sum(rows["segment_ids"] > 0, axis=1)
        tokens = [row[:n].tolist() for row, n in zip(rows["tokens"], lengths, strict=True)]
        found = model.lens(tokens, rows["targets"][:, : max(lengths)])
        answer_BT = rows["answer"][:, : max(lengths)]
        right.append(np.all((found.target_rank_LBT == 1) | ~answer_BT, axis=-1))
        first_B = np.argmax(answer_BT, axis=1)
        states.append(np.asarray(found.states_LBTD)[:, np.arange(len(first_B)), first_B])
    return np.concatenate(right, axis=1).mean(axis=1), np.concatenate(states, axis=1)


def _batches(source: TaskRows, count: int) -> Iterator[Any]:
    for first in range(0, count, ROWS):
        yield source.rows(np.arange(first, min(count, first + ROWS)))


def _built(source: TaskRows, count: int) -> np.ndarray | None:
    """states_LND of the construction at its last place."""
    try:
        construction, tokens, _ = construction_of(source.task.name)
    except UserError:  # None for this task, or none that float32 can hold at its size.
        return None
    examples = source.task.examples(source.seed, source.split, np.arange(count))
    tokens_NT = tokens(examples.inputs_NS)
    parts = [
        np.asarray([state_BTD[:, -1] for state_BTD in construction.states(tokens_NT[i : i + ROWS])])
        for i in range(0, count, ROWS)
    ]
    return np.concatenate(parts, axis=1)
