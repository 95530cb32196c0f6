"""What the state after each loop holds, over many examples of a task: the answer, were it read out
there, and the quantities on the way to it, as linear probes find them; beside it the same model
with fresh parameters and the paper's construction for the task.

All of it at the place where the answer is asked for. Where a plan has no loops, layers stand in
their place. L loops, N examples, D width, Q quantities.
"""

import dataclasses
from typing import Any

import numpy as np

from looped_jax.errors import UserError
from looped_jax.inference.generator import bucket
from looped_jax.inside import probes
from looped_jax.inside.opened import Opened
from looped_jax.inside.questions import Questions, questions
from looped_jax.theory.learned import construction_of
from looped_jax.training.state import init_state

ROWS = 256  # That go through the model at once, or fewer:
MOST_LOGITS = 1 << 26  # Rows times tokens times vocabulary; the lens holds a few arrays of that.


@dataclasses.dataclass(frozen=True)
class Decoded:
    """Accuracies from 0 to 1.

    read_L: exact match of what the model would say had it stopped there.
    probed_QL, fresh_QL, built_QL: of probes on its states, on those of the same model with fresh
      parameters, and on the construction's [Q, its own loops]; None where the task has none.
    frequent_Q: of always saying the most frequent class.
    examples, distinct: of each split, and how many of them are different ones, where probes are
      fitted and where they are tried.
    """

    names: tuple[str, ...]
    read_L: np.ndarray
    probed_QL: np.ndarray
    fresh_QL: np.ndarray
    built_QL: np.ndarray | None
    frequent_Q: np.ndarray
    examples: int
    distinct: tuple[int, int]

    def as_json(self) -> dict[str, Any]:
        """Lists of what it has."""
        found = dataclasses.asdict(self)
        return {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in found.items()}


def decoded(model: Opened, task: str = "", examples: int = 2048) -> Decoded:
    """Of a run of a synthetic task (``task``: one of its evaluation's), or of text and variable
    assignment (inside/questions.py): probes are fitted to ``examples`` of the validation split and
    tried on as many of the test split. UserError for other tasks of text."""
    fit, tried = (questions(model, task, split, examples) for split in ("validation", "test"))
    fresh = dataclasses.replace(model, params=_fresh(model))
    read_L, try_LND = answered(model, tried)

    def probed(fit_LND: np.ndarray, try_LND: np.ndarray) -> np.ndarray:
        return probes.accuracies((fit_LND, fit.quantities), (try_LND, tried.quantities))

    built, try_built = _built(fit), _built(tried)
    both = zip(fit.quantities, tried.quantities, strict=True)
    return Decoded(
        names=tuple(quantity.name for quantity in fit.quantities),
        read_L=read_L,
        probed_QL=probed(answered(model, fit)[1], try_LND),
        fresh_QL=probed(*(answered(fresh, of)[1] for of in (fit, tried))),
        built_QL=None if built is None or try_built is None else probed(built, try_built),
        frequent_Q=np.asarray([probes.most_frequent(*pair) for pair in both]),
        examples=examples,
        distinct=(fit.distinct, tried.distinct),
    )


def _fresh(model: Opened) -> Any:
    """Parameters as a run begins with, of another seed than its own."""
    job = model.run.job
    return init_state(job.model, job.optimizer, job.config.seed + 1, job.layout).evaluated


def answered(model: Opened, asked: Questions) -> tuple[np.ndarray, np.ndarray]:
    """read_L, exact match had it stopped after each loop, and states_LND where the (first token of
    the) answer is asked for."""
    right, states = [], []
    longest = bucket(max(map(len, asked.tokens)))
    rows = max(1, min(ROWS, MOST_LOGITS // (longest * model.model.config.vocab_size)))
    for first in range(0, len(asked.tokens), rows):
        here = slice(first, first + rows)
        tokens, place_B = asked.tokens[here], asked.place_N[here]
        found = model.lens(tokens, asked.targets[here])
        answer_BT = asked.answer_NT[here, : found.target_rank_LBT.shape[-1]]
        right.append(np.all((found.target_rank_LBT == 1) | ~answer_BT, axis=-1))
        states.append(np.asarray(found.states_LBTD)[:, np.arange(len(tokens)), place_B])
    return np.concatenate(right, axis=1).mean(axis=1), np.concatenate(states, axis=1)


def _built(asked: Questions) -> np.ndarray | None:
    """states_LND of the construction at its last place."""
    try:
        construction, tokens, _ = construction_of(asked.task)
    except UserError:  # None for this task, or none that float32 can hold at its size.
        return None
    tokens_NT = tokens(asked.inputs_NS)
    parts = [
        np.asarray([state_BTD[:, -1] for state_BTD in construction.states(tokens_NT[i : i + ROWS])])
        for i in range(0, len(tokens_NT), ROWS)
    ]
    return np.concatenate(parts, axis=1)
