"""Mixture-of-Recursions: 10 layers in 3 loops, each of fewer tokens than the one before.

Bae et al. 2025, arXiv 2507.10524, and its code, raymin0223/mixture_of_recursions. From there:
SmolLM-360M's shape (width 960, 15 heads, 5 for keys, SwiGLU of 2560, 49,152 tokens with a tied
output), its 32 layers as the plan 1x1,10x3,1x1 (its middle cycle), loops that choose all, two
thirds and a third of the tokens with gates of 0.1 sigmoid and a loss of weight 1e-3 for the
routers, AdamW (.9, .95) at 3e-3, constant and falling linearly over the last fifth, weight decay
0.1, clipping at 1, 1024 rows of 2048 tokens, 14,161 steps (29.7B tokens).

Not here: its initialisation, sharing of keys and values between loops, and that rows attend across
documents there. Ours: 708 steps of warm-up (5%); evaluating and generating by the causal rule, for
which the code has none. The vocabulary is ours, padded. Parameters: 165,177,600 (118.0M of them not
in the embedding, as published).

`token` is its other kind: every token chooses its loops, with a balance loss of weight 0.1.

    python -m looped_jax.main --config=experiments/mor.py:small --config.data.path=$PILE_DIR

`small` and `token_small`: 1x1,2x3,1x1 of width 64 on bytes, minutes on two CPU cores.
`--config.loop.routed_tokens=gathered` trains the same model with less work (not `token`).
"""

from experiments import pile
from looped_jax.config import ConfigDict


def get_config(argument: str = "") -> ConfigDict:
    kind = argument.removesuffix("small").removesuffix("_")
    size = argument.removeprefix("token").removeprefix("_")
    config = pile.get_config("1x1,10x3,1x1")
    config.model.update(d_model=960, num_heads=15, num_kv_heads=5, d_ff=2560, norm_eps=1e-5)
    config.model.update(tied_output=True, vocab_size=49_152)
    config.loop.routing = "token_choice" if kind == "token" else "expert_choice"
    config.data.length = 2048
    config.train.update(steps=14_161, batch_size=1024)
    config.optimizer.update(name="adamw", learning_rate=3e-3, warmup_steps=708, weight_decay=0.1)
    if pile.is_small(size):
        pile.small(config)
        config.model.update(plan="1x1,2x3,1x1", vocab_size=0, num_kv_heads=2)
    config.optimizer.update(schedule="wsd", decay_fraction=0.2, decay_form="linear")
    return config
