"""Symbolic i-GSM: data/paper/igsm.csv, table 2 of the paper (section 2.3).

One file for every row: the argument is the plan and optionally `cot`, `experiments/igsm.py:1x8`.
Rows: 8x1, 1x1, 1x2, 1x4, 1x8, 2x1, 2x2, 2x4, 4x1, 4x2. The answer alone is trained on and
evaluated; `igsm.py:1x8,cot` has the worked solution as its target.

    python -m looped_jax.main --config=experiments/igsm.py:1x8

Not stated in the paper and chosen here: GELU, RMSNorm, 10,000 steps of warm-up, fresh training
examples at every step (the paper draws from about 4M), and the distributions in the docstring
of looped_jax/data/tasks/igsm.py.
"""

from looped_jax.config import ConfigDict, default_config
from looped_jax.errors import UserError


def get_config(argument: str = "1x8") -> ConfigDict:
    plan, _, form = argument.partition(",")
    if form not in ("", "cot"):
        raise UserError(f"experiments/igsm.py: {form!r} is not cot")
    config = default_config()
    config.model.update(plan=plan, d_model=128, num_heads=8, d_ff=512, positions="rope")
    config.data.task = "igsm_cot" if form else "igsm"
    config.optimizer.update(
        name="adafactor", learning_rate=0.001, schedule="cosine", warmup_steps=10_000
    )
    config.train.update(steps=200_000, batch_size=256, log_every=100)
    config.checkpoint.every = 5_000
    config.eval.update(every=10_000, examples=4096)
    return config
