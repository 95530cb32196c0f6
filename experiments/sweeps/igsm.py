"""Every row of data/paper/igsm.csv at the paper's size.

python -m looped_jax.sweep --sweep=experiments/sweeps/igsm.py --workdir=DIR --print_commands
"""

from looped_jax.training.sweep import SweepRun

PLANS = ("8x1", "1x1", "1x2", "1x4", "1x8", "2x1", "2x2", "2x4", "4x1", "4x2")


def get_sweep() -> tuple[SweepRun, ...]:
    return tuple(SweepRun(plan, f"experiments/igsm.py:{plan}") for plan in PLANS)
