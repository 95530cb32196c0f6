"""Evaluates a run's checkpoint.

python -m looped_jax.evaluate --workdir=runs/phop_1x6 --tasks=phop_p16_n256 --loops=8 --step=5000

Prints one JSON object of metrics. Tasks: synthetic ones with the run's vocabulary, or `text`.
"""

import json

from absl import flags

from looped_jax import cli
from looped_jax.evaluation.held_out import Evaluator, HeldOut
from looped_jax.training.run import open_run
from looped_jax.training.trainer import held_out_sets

_WORKDIR = flags.DEFINE_string("workdir", "", "The run.")
_TASKS = flags.DEFINE_list("tasks", [], "Tasks; default: those of the run's config.")
_LOOPS = flags.DEFINE_integer("loops", None, "Loop count in place of the plan's.", lower_bound=1)
_STEP = flags.DEFINE_integer("step", None, "Checkpoint; default: the newest.", lower_bound=0)
_SPLIT = flags.DEFINE_enum("split", "validation", ["validation", "test"], "Held-out split.")


def main(overrides: dict[str, str]) -> None:
    """Restores, evaluates, prints."""
    if _TASKS.value:
        overrides = {**overrides, "eval.tasks": ",".join(_TASKS.value)}
    run = open_run(_WORKDIR.value, _STEP.value, overrides, needs_data=True)
    job = run.job
    job.model.config.plan.with_loops(_LOOPS.value)  # UserError before anything is read.
    sets: list[HeldOut] = held_out_sets(job.config, _SPLIT.value)
    state = run.restore()
    evaluator = Evaluator(job.model, job.mesh, job.rules, _LOOPS.value)
    metrics: dict[str, float] = {"step": run.step}
    for held_out in sets:
        metrics |= evaluator(state.params, held_out) or {}
    print(json.dumps(metrics))


if __name__ == "__main__":
    cli.run(main)
