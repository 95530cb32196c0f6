"""i-GSM at a laptop's size: the shape of data/paper/igsm.csv (the paper's table 2).

Problems of 2 to 4 parameters in place of 8 to 16, d_model 64 in place of 128, 1,500 steps in place
of 200,000. About 40 minutes on 2 CPU cores; results in docs/results.md.

    python -m looped_jax.sweep --sweep=experiments/sweeps/igsm_small.py --workdir=runs/igsm_small
"""

from looped_jax.training.sweep import SweepRun

PLANS = ("4x1", "1x1", "1x2", "1x4", "2x1", "2x2")
SMALL = {
    "data.task": "igsm_p4",
    "model.d_model": 64,
    "model.d_ff": 256,
    "optimizer.name": "adamw",
    "optimizer.learning_rate": 3e-3,
    "optimizer.warmup_steps": 200,
    "train.steps": 1500,
    "train.batch_size": 128,
    "eval.every": 250,
    "checkpoint.every": 500,
}


def get_sweep() -> tuple[SweepRun, ...]:
    return tuple(SweepRun(plan, f"experiments/igsm.py:{plan}", SMALL) for plan in PLANS)
