"""The optimizer: clipping -> Adafactor, AdamW or SGD -> weight decay -> learning rate.

Weight decay is decoupled and scaled by the learning rate for every optimizer (AdamW's rule):
p <- p - lr * (update + weight_decay * p).
"""

from typing import Any

import jax
import optax
from ml_collections import ConfigDict

from looped_jax.training.schedule import learning_rate


def decays(params: Any) -> Any:
    """True for the matrices of projections; False for norms, biases and embeddings."""

    def is_kernel(path: Any, _: Any) -> bool:
        return jax.tree_util.keystr(path[-1:], simple=True) == "kernel"

    return jax.tree_util.tree_map_with_path(is_kernel, params)


def make_optimizer(optimizer: ConfigDict, steps: int) -> optax.GradientTransformation:
    """The transformation that config.optimizer describes, for a run of ``steps`` updates.

    Adafactor (Shazeer and Stern 2018) as the paper uses it: an explicit schedule, steps relative
    to the size of each parameter, no momentum. Statistics are taken per parameter array, and
    the k layers of a segment are one array.
    """
    parts = []
    if optimizer.clip_norm:
        parts.append(optax.clip_by_global_norm(optimizer.clip_norm))
    if optimizer.name == "adafactor":
        parts += [
            optax.scale_by_factored_rms(),
            optax.clip_by_block_rms(1.0),
            optax.scale_by_param_block_rms(),
        ]
    elif optimizer.name == "adamw":
        parts.append(optax.scale_by_adam(b1=optimizer.b1, b2=optimizer.b2, eps=optimizer.eps))
    if optimizer.weight_decay:
        parts.append(optax.add_decayed_weights(optimizer.weight_decay, mask=decays))
    parts.append(optax.scale_by_learning_rate(learning_rate(optimizer, steps)))
    return optax.chain(*parts)
