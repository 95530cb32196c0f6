"""Model FLOPs, counted from the architecture: 2 per multiply-add of every matrix product.

Attention counts the whole T x T square, as is usual (Chowdhery et al. 2022, appendix B), though
half of it is masked. Element-wise work is left out. A k⊗L model counts as kL layers, and what a
kind of loop multiplies beside them.
"""

from looped_jax.models.config import ModelConfig
from looped_jax.models.loops import VARIANTS


def forward_flops(config: ModelConfig, rows: int, length: int) -> int:
    """FLOPs of one forward pass over ``rows`` rows of ``length`` tokens."""
    d, f = config.d_model, config.d_ff
    queries, groups = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    projections = 2 * d * (queries + 2 * groups) + 2 * queries * d
    attention = 2 * 2 * length * queries  # Scores, and the average of the values.
    mlp = 2 * d * f * (3 if config.mlp == "swiglu" else 2)
    per_token = config.plan.effective_depth * (projections + attention + mlp)
    for option, name in config.loop:
        variant = VARIANTS[option][name]
        for segment in config.plan.segments:
            if segment.trained_loops > 1:
                per_token += segment.loops * variant.loop_flops(config) + variant.pass_flops(config)
    return rows * length * (per_token + 2 * d * config.vocab_size)


def train_flops(config: ModelConfig, rows: int, length: int) -> int:
    """FLOPs of one training step: the backward pass takes twice the forward pass.

    Recomputation (`remat`) is not counted: model FLOPs, not hardware FLOPs.
    """
    return 3 * forward_flops(config, rows, length)
