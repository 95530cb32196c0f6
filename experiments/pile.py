"""Language models on the Pile: section 3 of the paper, tables 3 and 4.

The argument is the plan, alone for the paper's size or with `_small` for a laptop:
`experiments/pile.py:12x2`, `experiments/pile.py:12x2_small`. The paper's family (PLANS): 24x1; kx1
and kx(24/k) for k in 4, 6, 8, 12; 4x1,4x4,4x1 (middle looping); 4xL and 4Lx1 for L in 1, 2, 3, 6,
9, 12 (scaling with depth). All train on the same rows in the same order: prepare them once,

    python -m looped_jax.prepare --config=experiments/pile.py --config.data.path=$PILE_DIR \
        --output=$PREPARED_DIR
    python -m looped_jax.main --config=experiments/pile.py:12x2 --config.data.path=$PREPARED_DIR

The paper's size: width 2048, feed-forward 5120, 32 heads, 512 rows of 1280 tokens for 400,000
steps (262B tokens), Adafactor with a peak of 0.01 and cosine decay. Needs a TPU pod or GPUs; the
mesh puts all devices on `fsdp`. The paper calls 24x1 "1.5B parameters" and states neither the
vocabulary nor whether the MLP is gated. This config takes gated MLPs (swiglu) and an untied
output of 32,768 tokens: 1.16 billion in the layers and 1.29 in all. The other reading, a tied
vocabulary near 256k with ungated MLPs (0.91 + 0.52), is `--config.model.mlp=gelu
--config.model.tied_output=true --config.model.vocab_size=256000`. Not stated either and chosen
here: RoPE, RMSNorm, 10,000 steps of warm-up.

The small size: width 64, 4 heads, feed-forward 160, 8 rows of 256 bytes for 500 steps, with
AdamW, on bytes: minutes on two CPU cores.
"""

from looped_jax.config import ConfigDict, default_config
from looped_jax.errors import UserError

FAMILY = ("24x1", *(f"{k}x{loops}" for k in (4, 6, 8, 12) for loops in (1, 24 // k)))
SCALING = tuple(plan for n in (1, 2, 3, 6, 9, 12) for plan in (f"4x{n}", f"{4 * n}x1"))
PLANS = tuple(dict.fromkeys((*FAMILY, "4x1,4x4,4x1", *SCALING)))


def get_config(argument: str = "24x1") -> ConfigDict:
    plan = argument.removesuffix("_small")
    config = default_config()
    config.data.update(task="text", length=1280, vocabulary="pile_mini_32k", read_threads=4)
    config.model.update(
        plan=plan, d_model=2048, num_heads=32, d_ff=5120, mlp="swiglu", tied_output=False
    )
    config.model.update(dtype="bfloat16", remat="names", saved_names=("query", "key", "value"))
    config.mesh.update(data=1, fsdp=-1)
    config.optimizer.update(
        name="adafactor", learning_rate=0.01, schedule="cosine", warmup_steps=10_000
    )
    config.train.update(steps=400_000, batch_size=512, log_every=100)
    config.checkpoint.update(every=5_000, keep=3)
    config.eval.update(every=20_000, examples=4096)
    if plan != argument:
        small(config)
    return config


def is_small(argument: str) -> bool:
    """Reads the size of an experiment that has two: `small`, or nothing."""
    if argument not in ("", "small"):
        raise UserError(f"{argument!r} is not small; without it, the published size")
    return bool(argument)


def small(config: ConfigDict) -> None:
    """The same model, narrow, on bytes, for minutes instead of weeks."""
    config.data.update(length=256, vocabulary="bytes")
    config.model.update(d_model=64, num_heads=4, d_ff=160, dtype="float32")
    config.model.update(remat="none", saved_names=())
    config.mesh.update(data=-1, fsdp=1)
    config.optimizer.update(name="adamw", learning_rate=3e-3, warmup_steps=50, weight_decay=0.1)
    config.train.update(steps=500, batch_size=8, log_every=20)
    config.checkpoint.update(every=100, keep=3)
    config.eval.update(every=100, examples=256)
