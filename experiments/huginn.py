"""Huginn: a core of 4 layers in a random number of loops, 32 on average, on noise and the input.

Geiping et al. 2025, arXiv 2502.05171, and its code, seal-rg/recurrent-pretraining. From there: the
plan 2x1,4x32,2x1, width 5280, 55 heads, SwiGLU of 17,920, RoPE's base, 65,536 tokens with a tied
output, the matrix of state and input, noise as the first state, norms on the stream, counts (a
lognormal Poisson and one more, gradients through the last 8 loops), AdamW (.9, .95) at a constant
4e-5 after 4,096 steps, weight decay 4e-5, clipping at 1, 16.8M tokens a step, 800B in all.

The embedding times sqrt(d) is there and here, as every model here has it.

Not here: its initialisation (Takase), biases on queries and keys, the norm after the loop that is
also the last one, AdamW without epsilon (1e-8 here) and its clipping of updates. To stop a token
where predictions settle (by KL) belongs to generating, not to this file.
The vocabulary is ours, padded. Parameters: 3,564,892,320; published: 3.5B.

    python -m looped_jax.main --config=experiments/huginn.py:small --config.data.path=$PILE_DIR

`small`: 1x1,2x4,1x1 of width 64 on bytes, a mean of 4 loops, minutes on two CPU cores.
"""

from experiments import pile
from looped_jax.config import ConfigDict


def get_config(size: str = "") -> ConfigDict:
    config = pile.get_config("2x1,4x32,2x1")
    config.model.update(d_model=5280, num_heads=55, d_ff=17_920, rope_theta=5e4)
    config.model.update(tied_output=True, vocab_size=65_536)
    config.loop.update(injection="concat", state="noise", norms="stream")
    config.counts.update(distribution="lognormal_poisson", by="step", gradient_loops=8)
    config.optimizer.update(name="adamw", learning_rate=4e-5, schedule="constant")
    config.optimizer.update(warmup_steps=4096, weight_decay=4e-5)
    config.data.length = 4096
    config.train.update(steps=47_684, batch_size=4096)
    if pile.is_small(size):
        pile.small(config)
        config.model.update(plan="1x1,2x4,1x1", vocab_size=0)
        config.counts.gradient_loops = 2
    return config
