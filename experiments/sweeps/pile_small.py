"""Language models at a laptop's size: the shape of the paper's tables 3 and 4.

2⊗3 beside 2⊗1 and 6⊗1, looping of the middle beside 4⊗1, 6⊗1 with the cosine regulariser, and 6⊗1
grown by stacking; over bytes, d_model 128, 200 steps of 4,096 tokens, on $PILE_DIR (docs/data.md).
The regulariser's strength is the paper's. About 15 minutes on 2 CPU cores; results in
docs/results.md.

    python -m looped_jax.sweep --sweep=experiments/sweeps/pile_small.py --workdir=runs/pile_small
"""

from looped_jax.training.sweep import SweepRun

SHORT = {"train.steps": 200}
PLANS = ("6x1", "2x1", "2x3", "4x1", "1x1,2x2,1x1")
VARIANTS = {
    "6x1-reg-k2": {"regularizer.block": 2, "regularizer.strength": 10.0},
    "6x1-stacked": {"stacking.block": 2},
}


def get_sweep() -> tuple[SweepRun, ...]:
    plain = [SweepRun(p.replace(",", "-"), f"experiments/pile_mini.py:{p}", SHORT) for p in PLANS]
    varied = [SweepRun(n, "experiments/pile_mini.py:6x1", SHORT | o) for n, o in VARIANTS.items()]
    return (*plain, *varied)
