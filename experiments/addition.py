"""n-ary addition: data/paper/addition.csv, table 1 of the paper (section 2.1).

One file for every row: the argument is the plan, `experiments/addition.py:1x12`. Rows: 12x1,
1x1, 1x12, 2x1, 2x6, 3x1, 3x4 (and 4x1, 4x3, 6x1, 6x2 of the same family). Exact match for 8, 16, 24
and 32 operands, trained on a mixture of 2 to 32. The paper takes the best of three seeds:
--config.seed=0, 1, 2.

    python -m looped_jax.main --config=experiments/addition.py:1x12

Not stated in the paper and chosen here: RoPE, GELU, RMSNorm, 10,000 steps of warm-up.
"""

from looped_jax.config import ConfigDict, default_config


def get_config(plan: str = "1x12") -> ConfigDict:
    config = default_config()
    config.model.update(plan=plan, d_model=256, num_heads=8, d_ff=1024, positions="rope")
    config.data.task = "addition"
    config.optimizer.update(
        name="adafactor", learning_rate=0.005, schedule="cosine", warmup_steps=10_000
    )
    config.train.update(steps=200_000, batch_size=1024, log_every=100)
    config.checkpoint.every = 5_000
    config.eval.update(
        every=10_000,
        tasks=("addition_n8", "addition_n16", "addition_n24", "addition_n32"),
        examples=4096,
    )
    return config
