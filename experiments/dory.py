"""Dory: 20 layers in 2 loops between 8 and 8, all on the unit sphere (nGPT).

NVIDIA, by its code and defaults in transformers 5.24 (models/dory): the plan 8x1,20x2,8x1, width
2560, 16 heads of 256 with 4 of keys and values, SwiGLU of 7,168, 131,072 tokens with an untied
output; layers of nGPT (Loshchilov et al. 2024, arXiv 2410.01131) with a gate on attention's output;
before every loop the stream and the prelude's output, both at length 1, are added.

Not here: three of four layers see a window of 1,024 tokens there, with RoPE's base 1e4 (all see
everything here, with the base 1e7 of its others). Its training is in none of what was read: AdamW
(.9, .95) without weight decay is nGPT's, the rest is ours, and the matrices are not brought back to
length 1 after every update, as nGPT's are. The vocabulary is ours, padded. Parameters:
3,975,229,440; published: 4B.

    python -m looped_jax.main --config=experiments/dory.py:small --config.data.path=$PILE_DIR

`small`: 1x1,2x2,1x1 of width 64 on bytes, minutes on two CPU cores.
"""

from experiments import pile
from looped_jax.config import ConfigDict


def get_config(size: str = "") -> ConfigDict:
    config = pile.get_config("8x1,20x2,8x1")
    config.model.update(d_model=2560, num_heads=16, num_kv_heads=4, head_size=256, d_ff=7168)
    config.model.update(layer="ngpt", norm="l2", qk_norm=True, rope_theta=1e7)
    config.model.update(tied_output=False, vocab_size=131_072)
    config.loop.injection = "unit_add"
    config.optimizer.update(name="adamw", learning_rate=1e-3, schedule="cosine")
    config.optimizer.update(warmup_steps=0, weight_decay=0.0)
    config.data.length = 4096
    config.train.update(steps=100_000, batch_size=1024)
    if pile.is_small(size):
        pile.small(config)
        config.model.update(plan="1x1,2x2,1x1", num_kv_heads=2, head_size=32, vocab_size=0)
        config.optimizer.weight_decay = 0.0
    return config
