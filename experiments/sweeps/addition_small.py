"""Addition at a laptop's size: the shape of data/paper/addition.csv (the paper's table 1).

Two operands in place of up to 32, d_model 64 in place of 256, 1,500 steps in place of 200,000.
About 12 minutes on 2 CPU cores; results in docs/results.md.

    python -m looped_jax.sweep --sweep=experiments/sweeps/addition_small.py \
        --workdir=runs/addition_small
"""

from looped_jax.training.sweep import SweepRun

PLANS = ("4x1", "1x1", "1x4", "2x1", "2x2")
SMALL = {
    "data.task": "addition_n2",
    "model.d_model": 64,
    "model.d_ff": 256,
    "optimizer.name": "adamw",
    "optimizer.learning_rate": 5e-3,
    "optimizer.warmup_steps": 200,
    "train.steps": 1500,
    "train.batch_size": 256,
    "eval.tasks": (),
    "eval.every": 250,
    "checkpoint.every": 500,
}


def get_sweep() -> tuple[SweepRun, ...]:
    return tuple(SweepRun(plan, f"experiments/addition.py:{plan}", SMALL) for plan in PLANS)
