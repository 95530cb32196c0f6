"""Evaluates a run's checkpoint.

python -m looped_jax.evaluate --workdir=runs/phop_1x6 --tasks=phop_p16_n256 --loops=8 --step=5000

Prints one JSON object of metrics. Tasks: synthetic ones with the run's vocabulary, or `text`.
"""

import json

from absl import flags
from etils import epath

from looped_jax import cli
from looped_jax import config as config_lib
from looped_jax.config import UserError
from looped_jax.evaluation.held_out import Evaluator, HeldOut
from looped_jax.training.checkpoint import restore, saved_steps
from looped_jax.training.trainer import held_out_sets, prepare

_WORKDIR = flags.DEFINE_string("workdir", "", "The run.")
_TASKS = flags.DEFINE_list("tasks", [], "Tasks; default: those of the run's config.")
_LOOPS = flags.DEFINE_integer("loops", None, "Loop count in place of the plan's.", lower_bound=1)
_STEP = flags.DEFINE_integer("step", None, "Checkpoint; default: the newest.", lower_bound=0)
_SPLIT = flags.DEFINE_enum("split", "validation", ["validation", "test"], "Held-out split.")


def main(overrides: dict[str, str]) -> None:
    """Restores, evaluates, prints."""
    if not _WORKDIR.value:
        raise UserError("say --workdir=DIR of a run")
    workdir = epath.Path(_WORKDIR.value)
    steps = saved_steps(workdir)
    if not (workdir / "config.json").exists() or not steps:
        raise UserError(f"{workdir} holds no run with a checkpoint")
    step = steps[-1] if _STEP.value is None else _STEP.value
    if step not in steps:
        there = ", ".join(map(str, steps))
        raise UserError(f"{workdir} has no checkpoint of step {step}; it has {there}")
    config = config_lib.from_json((workdir / "config.json").read_text())
    config.unlock()
    config_lib.apply_overrides(config, overrides)
    if _TASKS.value:
        config.eval.tasks = tuple(_TASKS.value)
    config_lib.validate(config)
    job = prepare(config)
    job.model.config.plan.with_loops(_LOOPS.value)  # UserError before anything is read.
    sets: list[HeldOut] = held_out_sets(config, _SPLIT.value)
    state = restore(workdir / "checkpoints" / str(step), job.layout)
    evaluator = Evaluator(job.model, job.mesh, job.rules, _LOOPS.value)
    metrics: dict[str, float] = {"step": step}
    for held_out in sets:
        metrics |= evaluator(state.params, held_out) or {}
    print(json.dumps(metrics))


if __name__ == "__main__":
    cli.run(main)
