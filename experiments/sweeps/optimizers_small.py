"""AdamW and Muon, looped and not, each at the same three learning rates: p-hop at a laptop's size.

As phop_small.py (two hops over 16 characters, d_model 64), 500 steps, one seed. About 15 minutes on
2 CPU cores; the evaluations are in the table that the command prints.

    python -m looped_jax.sweep --sweep=experiments/sweeps/optimizers_small.py \
        --workdir=runs/optimizers_small
"""

from experiments.sweeps.phop_small import SMALL
from looped_jax.training.grid import crossed, product, runs
from looped_jax.training.sweep import SweepRun

ARMS = product({"model.plan": ("3x1", "1x3"), "optimizer.name": ("adamw", "muon")})
RATES = product({"optimizer.learning_rate": (2e-3, 5e-3, 1e-2)})
SHORT = {"train.steps": 500, "optimizer.warmup_steps": 50, "optimizer.schedule": "wsd"}


def get_sweep() -> tuple[SweepRun, ...]:
    return runs("experiments/phop.py:1x3", crossed(ARMS, RATES), SMALL | SHORT)
