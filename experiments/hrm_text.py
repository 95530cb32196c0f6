"""HRM-Text: two stacks of 16 layers at two speeds, three fast updates to one slow one, two cycles.

arXiv 2605.20613, its code (sapientinc/HRM-Text, size XL), the released model's config and
transformers 5.24 (models/hrm_text). From there: 3 low loops in each of 2 cycles, width 1536, 12
heads, SwiGLU of 4,096, a gate on attention's output, norms without a scale, an untied output of
65,536 tokens, the embedding's scale, rows of 4,096 tokens and 196,608 tokens a step, 4 passes over
40B tokens, AdamW-like updates at a constant 2.2e-4 after 2,000 steps, weight decay 0.1, betas (.9,
.95), an average of the parameters with a decay of .9999, gradients through 3 low and 2 high
updates. (Rates and passes are read in copies of its config.) Parameters: 1,182,795,264; published:
1B, the layers having 981M.

Not here: what it is trained for. It learns responses to instructions, which see all of their
instruction (PrefixLM), of which nothing is predicted; this file predicts every next token of text.
Gradients go through 2 updates at first there, and through 5 after a fifth of the steps; its
optimizer is Adam-atan2 without clipping, here AdamW, clipped at 1. The vocabulary is ours, padded.

    python -m looped_jax.main --config=experiments/hrm_text.py:small --config.data.path=$PILE_DIR

`small`: 2x8 of width 64 on bytes, minutes on two CPU cores.
"""

from experiments import pile
from looped_jax.config import ConfigDict


def get_config(size: str = "") -> ConfigDict:
    config = pile.get_config("16x8")
    config.model.update(d_model=1536, num_heads=12, d_ff=4096, vocab_size=65_536)
    config.model.update(norm="rmsnorm_unscaled", attention_gate=True)
    config.loop.update(nest="two_stacks", low_loops=3, low_gradient_loops=(0, 3))
    config.optimizer.update(name="adamw", learning_rate=2.2e-4, schedule="constant")
    config.optimizer.update(warmup_steps=2000, weight_decay=0.1, ema=0.9999)
    config.data.length = 4096
    config.train.update(steps=813_802, batch_size=48)
    if pile.is_small(size):
        pile.small(config)
        config.model.update(plan="2x8", vocab_size=0)
        config.optimizer.ema = 0.0
    return config
