"""LoopFormer: 3 layers in 8 loops, told the time; each step also takes a short trajectory.

arXiv 2602.11451 and its code, armenjeddi/loopformer (train_loopformer_3blk). From there: the plan
3x8, width 2048, 32 heads, a feed-forward of 5120 (gelu), learned positions, 50,304 tokens with a
tied output, the time in every layer, the loss of a short trajectory and the distance of its states
from the long one's at 0.1 each, AdamW (.9, .95) at 6e-4 after 2,000 steps and cosine decay to a
tenth, weight decay 0.2, clipping at 1, 480 rows of 1024 tokens, 50,000 steps (24.6B tokens).

Not here: its initialisation, and norms without a scale in the layers. There, weight decay also acts
on embeddings, and each of the 40 parts of a batch has a short trajectory of its own. The
vocabulary is ours, padded.
Parameters: 278,181,888.

    python -m looped_jax.main --config=experiments/loopformer.py:small \
        --config.data.path=$PILE_DIR

`small`: 2x4 of width 64 on bytes, minutes on two CPU cores.
"""

from experiments import pile
from looped_jax.config import ConfigDict


def get_config(size: str = "") -> ConfigDict:
    config = pile.get_config("3x8")
    config.model.update(d_ff=5120, mlp="gelu", positions="learned")
    config.model.update(tied_output=True, vocab_size=50_304)
    config.loop.per_loop = "time"
    config.loop_loss.kind = "shortcut"
    config.optimizer.update(name="adamw", learning_rate=6e-4, schedule="cosine")
    config.optimizer.update(warmup_steps=2000, final_fraction=0.1, weight_decay=0.2)
    config.data.length = 1024
    config.train.update(steps=50_000, batch_size=480)
    if pile.is_small(size):
        pile.small(config)
        config.model.update(plan="2x4", vocab_size=0)
    return config
