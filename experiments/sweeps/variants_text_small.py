"""Kinds of loops side by side on text: the arms of variants_small.py, over bytes.

Two layers in three loops, width 64, 500 steps of 2,048 bytes on $PILE_DIR (docs/data.md), the other
arms with the same training FLOPs; `unlooped` and `untied` are 2x1 and 6x1. Four learning rates,
three seeds; what is reported is of the test shard (docs/variants.md). 106 runs of about 100
seconds of one CPU core each.

    python -m looped_jax.sweep --sweep=experiments/sweeps/variants_text_small.py \
        --workdir=runs/variants_text_small --config.data.path=$PILE_DIR
    python -m benchmarks.variants --runs=runs/variants_text_small
"""

from experiments.sweeps.variants_small import ARMS, side_by_side
from looped_jax.training.sweep import SweepRun

PLANS = {"1x1": "2x1", "3x1": "6x1", "1x2": "2x2", "1x4": "2x4"}
TEXT_ARMS = {
    name: {key: PLANS.get(value, value) for key, value in arm.items()} for name, arm in ARMS.items()
}
RATES = (1.5e-3, 4e-3, 1e-2, 2.5e-2)
# Beyond them for an arm whose best was at their end.
BEYOND = {"add": 6e-2}
TUNED = {**dict.fromkeys(ARMS, 1e-2), "add": 2.5e-2}
BASE = {
    "data.test_files": "test.jsonl.zst",
    "train.steps": 500,
    "optimizer.warmup_steps": 50,
    "eval.every": 250,
    "checkpoint.every": 10_000,
}


def get_sweep() -> tuple[SweepRun, ...]:
    return side_by_side("experiments/pile.py:2x3_small", TEXT_ARMS, BASE, RATES, BEYOND, TUNED)
