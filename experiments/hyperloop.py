"""Hyperloop at 136M: the middle half of the layers in 3 loops, with four streams between loops.

arXiv 2604.21254; there is no code of its authors. From there: a quarter of the layers, the middle
half three times, a quarter; the streams, mixed by functions of them; AdamW with cosine decay.

Inferred from its parameter counts (136M looped, 238M of the same depth unlooped): 2x1,4x3,2x1,
width 1024, SwiGLU of 2,816, 32,768 tokens with a tied output. That makes 136,482,861 parameters,
150,573 of them the streams'; the paper has 150,000 to 300,000. Chosen here, as what was read states
none: 16 heads, a rate of 1e-3, 1,000 steps of warm-up, weight decay 0.1, 256 rows of 2048 tokens,
20,000 steps.

    python -m looped_jax.main --config=experiments/hyperloop.py:small --config.data.path=$PILE_DIR

`small`: 1x1,2x3,1x1 of width 64 on bytes, minutes on two CPU cores.
"""

from experiments import pile
from looped_jax.config import ConfigDict


def get_config(size: str = "") -> ConfigDict:
    config = pile.get_config("2x1,4x3,2x1")
    config.model.update(d_model=1024, num_heads=16, d_ff=2816, tied_output=True)
    config.loop.lanes = "hyperloop"
    config.optimizer.update(name="adamw", learning_rate=1e-3, schedule="cosine")
    config.optimizer.update(warmup_steps=1000, weight_decay=0.1)
    config.data.length = 2048
    config.train.update(steps=20_000, batch_size=256)
    if pile.is_small(size):
        pile.small(config)
        config.model.plan = "1x1,2x3,1x1"
    return config
