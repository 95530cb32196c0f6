"""Language models on the Pile: sections 3 and appendix A of the paper.

The argument is the plan: `experiments/pile.py:12x2`. The paper's family: 24x1; kx1 and
kx(24/k) for k in 4, 6, 8, 12; 4x1,4x4,4x1 (middle looping); 4xL and 4Lx1 for L in 1, 2, 3, 6,
9, 12 (scaling).

The paper does not state the vocabulary or whether the MLP is gated. This config takes the
reading with gated MLPs (swiglu) and an untied output of 32,768 tokens: 24x1 then has 1.29
billion parameters in its layers. The other reading, a tied vocabulary near 256k with ungated
MLPs, is `--config.model.mlp=gelu --config.model.tied_output=true --config.model.vocab_size=256000`.
Tokens are bytes for now, in the first ids of that vocabulary.

    python -m looped_jax.main --config=experiments/pile.py:12x2 --config.data.path=$PILE_DIR

Needs a TPU pod or GPUs; the mesh puts all devices on `fsdp`.
"""

from looped_jax.config import ConfigDict, default_config


def get_config(plan: str = "24x1") -> ConfigDict:
    config = default_config()
    config.model.update(
        plan=plan,
        d_model=2048,
        num_heads=32,
        d_ff=5120,
        mlp="swiglu",
        tied_output=False,
        vocab_size=32_768,
        dtype="bfloat16",
        remat="layer",
    )
    config.mesh.update(data=1, fsdp=-1)
    config.data.update(task="text", length=1280)
    config.optimizer.update(
        name="adafactor", learning_rate=0.01, schedule="cosine", warmup_steps=10_000
    )
    config.train.update(steps=400_000, batch_size=512, log_every=100)
    config.checkpoint.update(every=5_000, keep=3)
    config.eval.update(every=20_000, examples=4096)
    return config
