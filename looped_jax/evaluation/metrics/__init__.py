"""The official metric of every downstream task, reimplemented; one file per family."""

from collections.abc import Callable, Sequence

from looped_jax.data.tasks import get_task, task_names
from looped_jax.data.tasks.downstream import TASKS
from looped_jax.errors import UserError, nearest
from looped_jax.evaluation.metrics.answers import (
    exact_text,
    open_domain,
    squad_v2,
    triviaqa,
    tydiqa,
)
from looped_jax.evaluation.metrics.base import Record, Scored
from looped_jax.evaluation.metrics.dialogue import coqa, quac
from looped_jax.evaluation.metrics.drop import drop
from looped_jax.evaluation.metrics.numbers import math_problems

Scorer = Callable[[Sequence[Record]], Scored]

# By the name that a DownstreamTask gives.
METRICS: dict[str, Scorer] = {
    "triviaqa": triviaqa,
    "tydiqa": tydiqa,
    "open_domain": open_domain,
    "squad_v2": squad_v2,
    "drop": drop,
    "quac": quac,
    "coqa": coqa,
    "math_problems": math_problems,
    "exact_text": exact_text,
}


def metric_of(task: str) -> Scorer:
    """The metric of a task; UserError with the nearest name if there is no such task."""
    if task in TASKS:
        return METRICS[TASKS[task].metric]
    try:
        get_task(task)  # Synthetic: its answer is one text.
    except UserError as error:
        hint = nearest(task, [*TASKS, *task_names()])
        raise UserError(f"no task {task!r}{hint} (python -m looped_jax.tasks --list)") from error
    return exact_text
