"""Every row of data/paper/phop.csv at the paper's size: 16 and 32 hops over 256 characters.

python -m looped_jax.sweep --sweep=experiments/sweeps/phop.py --workdir=DIR --print_commands
"""

from looped_jax.training.sweep import SweepRun

PLANS = ("6x1", "1x1", "1x6", "2x1", "2x3", "3x1", "3x2")


def get_sweep() -> tuple[SweepRun, ...]:
    return tuple(
        SweepRun(f"{plan}-{hops}", f"experiments/phop.py:{plan},{hops}")
        for hops in ("p16", "p32")
        for plan in PLANS
    )
