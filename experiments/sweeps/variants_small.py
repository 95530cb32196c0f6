"""Kinds of loops side by side, each tuned at the same learning rates, with equal training FLOPs.

One layer in three loops learns to compose seven permutations of three points, as in the quick
start. An arm differs from `plain` in what its name says and, as all are trained with the FLOPs of
`plain`'s 1,000 steps, in its number of steps. `unlooped` has the parameters of `plain`, `untied`
its depth and its cost per token. Seed 0 tunes: three learning rates, and one beyond them where the
best is at an end; the best on validation rows is an arm's. Seeds 1, 2 and 3 measure, at that rate
(TUNED): what is reported is of test rows, also of longer problems and other numbers of loops
(docs/variants.md). About an hour on two CPU cores.

    python -m looped_jax.sweep --sweep=experiments/sweeps/variants_small.py \
        --workdir=runs/variants_small
    python -m benchmarks.variants --runs=runs/variants_small \
        --tasks=group_s3_n7,group_s3_n8,group_s3_n10
"""

from collections.abc import Mapping, Sequence
from typing import Any

from looped_jax.training.grid import at_equal_flops
from looped_jax.training.sweep import SweepRun

NOISE = {"loop.state": "noise"}
# What an arm overrides, where the plain loop is 1x3.
ARMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "unlooped": {"model.plan": "1x1"},
    "untied": {"model.plan": "3x1"},
    "plain2": {"model.plan": "1x2"},
    "plain4": {"model.plan": "1x4"},
    "add": {"loop.injection": "add"},
    "concat": {"loop.injection": "concat"},
    "embedding": {"loop.per_loop": "embedding"},
    "time": {"loop.per_loop": "time"},
    "lora": {"loop.per_loop": "lora", "loop.lora_rank": 4},
    "lanes": {"loop.lanes": "hyper"},
    "hyperloop": {"loop.lanes": "hyperloop"},
    "huginn": NOISE
    | {"loop.injection": "concat", "loop.norms": "stream"}
    | {"counts.distribution": "lognormal_poisson", "counts.gradient_loops": 2},
    "parcae": NOISE
    | {"loop.injection": "decay", "model.qk_norm": True}
    | {"counts.distribution": "poisson", "counts.by": "row", "counts.gradient_loops": 2},
    "ouro": {"loop.norms": "branch", "loop.last_norm": "every_loop"}
    | {"loop.gate": "linear", "loop_loss.kind": "expected"},
}
RATES = (3e-3, 8e-3, 2e-2)
# Where the best of RATES was at their end: one more.
BEYOND = {"parcae": 5e-2, "time": 1e-3}
# The best with seed 0; benchmarks/variants.py says where that is no longer so.
TUNED = {**dict.fromkeys(ARMS, 8e-3), "parcae": 2e-2, "time": 3e-3}
TUNING, SEEDS = 0, (1, 2, 3)
BASE = {
    "train.steps": 1000,
    "optimizer.warmup_steps": 200,
    "eval.every": 500,
    "checkpoint.every": 10_000,
}


def side_by_side(
    experiment: str,
    arms: Mapping[str, Mapping[str, Any]],
    base: Mapping[str, Any],
    rates: Sequence[float],
    beyond: Mapping[str, float],
    tuned: Mapping[str, float],
) -> tuple[SweepRun, ...]:
    """All arms at all rates, and at those ``beyond``, with seed TUNING, and those of ``tuned`` at
    its rate with SEEDS; all are trained with the FLOPs of the arm that overrides nothing."""
    equal = dict(zip(arms, at_equal_flops(experiment, arms.values(), base, {}), strict=True))
    runs = [(name, rate, TUNING) for rate in rates for name in arms]
    runs += [(name, rate, TUNING) for name, rate in beyond.items()]
    runs += [(name, rate, seed) for seed in SEEDS for name, rate in tuned.items()]

    def run(name: str, rate: float, seed: int) -> SweepRun:
        chosen = {"optimizer.learning_rate": rate, "seed": seed}
        return SweepRun(
            f"{name}_lr{rate:g}_seed{seed}", experiment, {**base, **equal[name], **chosen}
        )

    return tuple(run(*of) for of in runs)


def get_sweep() -> tuple[SweepRun, ...]:
    return side_by_side("experiments/group.py:1x3", ARMS, BASE, RATES, BEYOND, TUNED)
