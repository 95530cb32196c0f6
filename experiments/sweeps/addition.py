"""Every row of data/paper/addition.csv at the paper's size; it takes the best of three seeds.

python -m looped_jax.sweep --sweep=experiments/sweeps/addition.py --workdir=DIR --print_commands
"""

from looped_jax.training.sweep import SweepRun

PLANS = ("12x1", "1x1", "1x12", "2x1", "2x6", "3x1", "3x4")


def get_sweep() -> tuple[SweepRun, ...]:
    return tuple(
        SweepRun(f"{plan}-seed{seed}", f"experiments/addition.py:{plan}", {"seed": seed})
        for plan in PLANS
        for seed in (0, 1, 2)
    )
