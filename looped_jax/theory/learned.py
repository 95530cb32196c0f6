"""From theory to learning: how accuracy depends on the loops at evaluation, for a trained model and
for the construction that solves the same task."""

import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from looped_jax.data.rows import FIRST_FREE_ID
from looped_jax.data.tasks import get_task
from looped_jax.data.tasks.phop import ALPHABET
from looped_jax.errors import UserError
from looped_jax.evaluation.held_out import Evaluator
from looped_jax.theory import group_composition, p_hop
from looped_jax.theory.construction import Construction
from looped_jax.theory.groups import named_group
from looped_jax.training.evaluations import held_out_sets
from looped_jax.training.run import open_run

EXAMPLES = 512


def by_loops(workdir: str, most: int) -> tuple[dict[str, dict[int, float]], str, int]:
    """Name -> loops -> exact match, 0 to 1, of the run's newest checkpoint with 1 … ``most`` loops
    and then of the construction with as many as it has; the task; the loops that the run was
    trained with. UserError for a run of another task."""
    run = open_run(workdir)
    job, task = run.job, str(run.job.config.data.task)
    of_construction = construction_curve(task)
    job.model.config.plan.with_loops(1)  # UserError if there is nothing to loop.
    (held_out,) = held_out_sets(job)
    params = run.parameters()
    trained: dict[int, float] = {}
    for loops in range(1, most + 1):
        metrics = Evaluator(job.model, job.mesh, job.rules, loops)(params, held_out)
        assert metrics is not None  # Nothing stops it.
        trained[loops] = metrics[f"eval/{held_out.name}/accuracy"]
    plan = job.model.config.plan
    curves = {f"trained {plan}": trained, "construction": of_construction}
    return curves, task, max(segment.loops for segment in plan.segments)


class Solution(NamedTuple):
    """A construction for a task; ``tokens``: the task's input ids [B, S] -> its tokens_BT, whose
    last place says the answer; ``first_answer``: the id with which its answers begin."""

    construction: Construction
    tokens: Callable[[np.ndarray], np.ndarray]
    first_answer: int = 0


def construction_of(task: str) -> Solution:
    """UserError for a task that has none."""
    if match := re.fullmatch(r"group_([a-z]\d+)_n(\d+)", task):
        built = group_composition.group_composition(named_group(match[1]), int(match[2]))
        return Solution(
            built,
            lambda ids_BS: group_composition.tokens(ids_BS - FIRST_FREE_ID),
            group_composition.START + 1,
        )
    if match := re.fullmatch(r"phop_p(\d+)_n(\d+)", task):
        hops = p_hop.p_hop(int(match[1]), int(match[2]), len(ALPHABET))
        return Solution(hops, lambda ids_BS: p_hop.tokens(hops, ids_BS - FIRST_FREE_ID))
    raise UserError(f"there is a construction for group_* and phop_* tasks, not for {task}")


def construction_curve(task: str) -> dict[int, float]:
    """Loops -> exact match of the construction of a task on random inputs."""
    built, tokens, first = construction_of(task)
    drawn = get_task(task).draw(np.random.default_rng(0), EXAMPLES)
    right_B = drawn.answers_NA[:, 0] - FIRST_FREE_ID + first
    output_DV = np.asarray(built.params["output"]["kernel"])
    return {
        loops: float(np.mean(np.argmax(state_BTD[:, -1] @ output_DV, axis=-1) == right_B))
        for loops, state_BTD in enumerate(built.states(tokens(drawn.inputs_NS)), start=1)
    }
