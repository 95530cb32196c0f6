"""Ouro: the whole stack in 4 loops, each of which may be the last; a gate learns which.

Zhu et al. 2025, arXiv 2510.25741, and the released weights ByteDance/Ouro-1.4B. From there: the
plan 24x4, width 2048, 16 heads, SwiGLU of 5,632, 49,152 tokens with an untied output, norms on the
branch, a norm that ends every loop and is the last one, the gate, the expected loss, AdamW (.9,
.95) at 3e-4, weight decay 0.1, clipping at 1, 4M tokens a step, 3T in the first stage.

Not here: its first part with 8 loops; beta, which goes from .1 to .05 there and is .1 throughout
(`--config.loop_loss.beta=0.05` for a later stage); the later stages' rates, lengths and RoPE bases.
Ours: 2,000 steps of warm-up, and the embedding times sqrt(d), which Ouro does not have: our table
begins with entries of size d^-1/2, so h_0 begins at unit scale, where Ouro's begins at its table's.
The vocabulary is ours, padded.
Parameters: 1,434,652,673 (1.4B).

`gate` is its stage II: the gate alone is trained, by what each loop gains, from a model that has
been trained. What was read states no rate and no length of it: 3e-4 and 10,000 steps are ours.

    python -m looped_jax.main --config=experiments/ouro.py:small --workdir=runs/ouro \
        --config.data.path=$PILE_DIR
    python -m looped_jax.main --config=experiments/ouro.py:gate_small --workdir=runs/ouro_gate \
        --config.data.path=$PILE_DIR --config.train.start_from=runs/ouro/checkpoints/500

`small` and `gate_small`: 2x4 of width 64 on bytes, minutes on two CPU cores.
"""

from experiments import pile
from looped_jax.config import ConfigDict


def get_config(argument: str = "") -> ConfigDict:
    stage = argument.removesuffix("small").removesuffix("_")
    size = argument.removeprefix("gate").removeprefix("_")
    config = pile.get_config("24x4")
    config.model.update(d_ff=5632, num_heads=16, vocab_size=49_152)
    config.loop.update(norms="branch", last_norm="every_loop", gate="linear")
    config.loop_loss.update(kind="expected", beta=0.1)
    config.optimizer.update(name="adamw", learning_rate=3e-4, schedule="constant")
    config.optimizer.update(warmup_steps=2000, weight_decay=0.1)
    config.data.length = 4096
    config.train.update(steps=715_256, batch_size=1024)
    if pile.is_small(size):
        pile.small(config)
        config.model.update(plan="2x4", vocab_size=0)
    if stage == "gate":
        config.loop_loss.kind = "gate"
        config.train.steps = 100 if size else 10_000
    return config
