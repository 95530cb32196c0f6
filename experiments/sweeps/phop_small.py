"""p-hop at a laptop's size: the shape of data/paper/phop.csv (the paper's table 1).

Two hops over 16 characters in place of 16 or 32 over 256, d_model 64 in place of 128, 1,500 steps
in place of 200,000. By theorem, floor(log2 2) + 2 = 3 layers' depth is enough. About 10 minutes on
2 CPU cores; results in docs/results.md.

    python -m looped_jax.sweep --sweep=experiments/sweeps/phop_small.py --workdir=runs/phop_small
"""

from looped_jax.training.sweep import SweepRun

PLANS = ("3x1", "1x1", "1x2", "1x3", "2x1")
SMALL = {
    "data.task": "phop_p2_n16",
    "model.d_model": 64,
    "model.d_ff": 256,
    "optimizer.name": "adamw",
    "optimizer.learning_rate": 5e-3,
    "optimizer.warmup_steps": 200,
    "train.steps": 1500,
    "eval.every": 250,
    "checkpoint.every": 500,
}


def get_sweep() -> tuple[SweepRun, ...]:
    return tuple(SweepRun(plan, f"experiments/phop.py:{plan}", SMALL) for plan in PLANS)
