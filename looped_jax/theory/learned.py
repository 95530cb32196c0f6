"""From theory to learning: how accuracy depends on the loops at evaluation, for a trained model and
for the construction that solves the same task."""

import re

import numpy as np

from looped_jax.data.rows import FIRST_FREE_ID
from looped_jax.data.tasks.phop import ALPHABET, PHop
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


def construction_curve(task: str) -> dict[int, float]:
    """Loops -> exact match of the construction of a task on random inputs."""
    rng = np.random.default_rng(0)
    if match := re.fullmatch(r"group_([a-z]\d+)_n(\d+)", task):
        group, n = named_group(match[1]), int(match[2])
        built = group_composition.group_composition(group, n)
        elements_NS = rng.integers(0, group.order, (EXAMPLES, n))
        right_N = group.product(elements_NS) + 1
        return _curve(built, group_composition.tokens(elements_NS), right_N)
    if match := re.fullmatch(r"phop_p(\d+)_n(\d+)", task):
        p, n = int(match[1]), int(match[2])
        built = p_hop.p_hop(p, n, len(ALPHABET))
        drawn = PHop(task, p, n).draw(rng, EXAMPLES)
        sequences_BN = drawn.inputs_NS - FIRST_FREE_ID
        return _curve(
            built, p_hop.tokens(built, sequences_BN), drawn.answers_NA[:, 0] - FIRST_FREE_ID
        )
    raise UserError(f"there is a construction for group_* and phop_* tasks, not for {task}")


def _curve(built: Construction, tokens_BT: np.ndarray, right_B: np.ndarray) -> dict[int, float]:
    output_DV = np.asarray(built.params["output"]["kernel"])
    return {
        loops: float(np.mean(np.argmax(state_BTD[:, -1] @ output_DV, axis=-1) == right_B))
        for loops, state_BTD in enumerate(built.states(tokens_BT), start=1)
    }
