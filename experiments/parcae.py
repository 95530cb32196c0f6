"""Parcae at 140M: the state decays and the input flows in before every loop, so it stays bounded.

arXiv 2604.12946 and its code, sandyresearch/parcae. From there: the plan 2x1,2x8,2x1, the
injection, noise as the first state, norms of queries and keys, counts (Poisson of mean 8, each row
its own, gradients through the last 4), Muon with AdamW at 8e-3, no warm-up, the last half of steps
decaying.

Chosen here, as what was read states none: width 1024, 8 heads, a feed-forward of 4096, 32,768
tokens with an untied output, which makes 144,721,408 parameters; 256 rows of 2048 tokens, 20,000
steps (10B tokens); a linear decay to 0, no weight decay. Not here: its ReLU squared (relu), and its
initialisation. A step of Muon has AdamW's size here (docs/train.md); under the other rule the same
rate means another step.

    python -m looped_jax.main --config=experiments/parcae.py:small --config.data.path=$PILE_DIR

`small`: 1x1,2x4,1x1 of width 64 on bytes, a mean of 4 loops, minutes on two CPU cores.
"""

from experiments import pile
from looped_jax.config import ConfigDict


def get_config(size: str = "") -> ConfigDict:
    config = pile.get_config("2x1,2x8,2x1")
    config.model.update(d_model=1024, num_heads=8, d_ff=4096, mlp="relu", qk_norm=True)
    config.loop.update(injection="decay", state="noise")
    config.counts.update(distribution="poisson", by="row", gradient_loops=4)
    config.data.length = 2048
    config.train.update(steps=20_000, batch_size=256)
    if pile.is_small(size):
        pile.small(config)
        config.model.plan = "1x1,2x4,1x1"
        config.counts.gradient_loops = 2
    config.optimizer.update(name="muon", learning_rate=8e-3, warmup_steps=0, weight_decay=0.0)
    config.optimizer.update(schedule="wsd", decay_fraction=0.5, decay_form="linear")
    return config
