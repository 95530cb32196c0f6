"""p-hop induction: data/paper/phop.csv, table 1 of the paper (section 2.2).

One file for every row: the argument is the plan and optionally p, `experiments/phop.py:1x6` or
`experiments/phop.py:1x6,p32`. Rows: 6x1, 1x1, 1x6, 2x1, 2x3, 3x1, 3x2, each with p16 (the
default) and p32, on sequences of 256 characters.

    python -m looped_jax.main --config=experiments/phop.py:1x6,p16

Not stated in the paper and chosen here: GELU, RMSNorm, 10,000 steps of warm-up, fresh training
examples at every step (the paper draws from 4M).
"""

from looped_jax.config import ConfigDict, default_config
from looped_jax.errors import UserError


def get_config(argument: str = "1x6") -> ConfigDict:
    plan, _, hops = argument.partition(",")
    if hops not in ("", "p16", "p32"):
        raise UserError(f"experiments/phop.py: {hops!r} is not p16 or p32")
    config = default_config()
    config.model.update(plan=plan, d_model=128, num_heads=8, d_ff=512, positions="rope")
    config.data.task = f"phop_{hops or 'p16'}_n256"
    config.optimizer.update(
        name="adafactor", learning_rate=0.001, schedule="cosine", warmup_steps=10_000
    )
    config.train.update(steps=200_000, batch_size=256, log_every=100)
    config.checkpoint.every = 5_000
    config.eval.update(every=10_000, examples=4096)
    return config
