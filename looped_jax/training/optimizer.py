"""The optimizer: clipping -> Adafactor, AdamW, Muon or SGD -> weight decay -> learning rate.

Weight decay is decoupled and scaled by the learning rate for every optimizer (AdamW's rule):
p <- p - lr * (update + weight_decay * p). A group's factor is one of the learning rate, so it
scales both.
"""

from typing import Any

import jax
import optax
from ml_collections import ConfigDict

from looped_jax.models.matrices import layered_shape
from looped_jax.training.muon import matrix_axes, muon
from looped_jax.training.parameter_groups import (
    frozen_parameters,
    group_rates,
    map_parameters,
)
from looped_jax.training.schedule import learning_rate


def decays(params: Any) -> Any:
    """True for the matrices of projections; False for norms, biases and embeddings."""

    def is_kernel(path: Any, _: Any) -> bool:
        return jax.tree_util.keystr(path[-1:], simple=True) == "kernel"

    return jax.tree_util.tree_map_with_path(is_kernel, params)


def layer_by_layer(
    transformation: optax.GradientTransformation, axes: Any
) -> optax.GradientTransformation:
    """A transformation of matrices (and vectors), applied to each layer's by itself.

    ``axes``: the logical axis names of each parameter. The state has, in the place of each
    parameter, the transformation's state with an axis of layers in front.
    """

    def seen(array: jax.Array, names: Any) -> jax.Array:
        return array.reshape(layered_shape(tuple(names), array.shape))

    def init(params: Any) -> Any:
        return jax.tree.map(lambda p, n: jax.vmap(transformation.init)(seen(p, n)), params, axes)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        def one(update: jax.Array, names: Any, of_state: Any, param: jax.Array) -> Any:
            made, kept = jax.vmap(transformation.update)(
                seen(update, names), of_state, seen(param, names)
            )
            return made.reshape(update.shape), kept

        tree: Any = jax.tree.structure(updates)
        rest = (tree.flatten_up_to(t) for t in (axes, state, params))
        made, kept = zip(*map(one, jax.tree.leaves(updates), *rest), strict=True)
        return tree.unflatten(made), tree.unflatten(kept)

    return optax.GradientTransformation(init, update)


def make_optimizer(
    optimizer: ConfigDict, steps: int, axes: Any, only: str = ""
) -> optax.GradientTransformation:
    """The transformation that config.optimizer describes, for a run of ``steps`` updates of
    parameters with these logical axes; ``only``: as in frozen_parameters.

    Adafactor (Shazeer and Stern 2018) as the paper uses it: an explicit schedule, steps relative
    to the size of each parameter, no momentum. Statistics, clipping and size are those of one
    layer's matrix, however layers are stored, as in T5X.

    Frozen parameters have no state and no update, and count in no norm. UserError for a pattern of
    parameters that chooses none.
    """
    rates = _rates(optimizer, axes)
    frozen = frozen_parameters(optimizer, axes, only)
    if frozen is None:
        return _of_trained(optimizer, steps, axes, rates)

    def trained(tree: Any) -> Any:
        return jax.tree.map(lambda held, of: optax.MaskedNode() if held else of, frozen, tree)

    return optax.partition(
        {
            "trained": _of_trained(optimizer, steps, trained(axes), trained(rates)),
            "frozen": optax.set_to_zero(),
        },
        jax.tree.map(lambda held: "frozen" if held else "trained", frozen),
    )


def _rates(optimizer: ConfigDict, axes: Any) -> Any:
    """The factor of the learning rate of each parameter."""
    rates = group_rates(optimizer, axes)
    if optimizer.name != "muon":
        return rates
    of_adamw = optimizer.muon_adamw_rate
    by_kind = map_parameters(lambda *of: 1.0 if matrix_axes(*of) else of_adamw, axes)
    return jax.tree.map(lambda a, b: a * b, rates, by_kind)


def _of_trained(
    optimizer: ConfigDict, steps: int, axes: Any, rates: Any
) -> optax.GradientTransformation:
    """``make_optimizer``'s, of the parameters that are trained: both trees lack the others."""
    parts = []
    if optimizer.clip_norm:
        parts.append(optax.clip_by_global_norm(optimizer.clip_norm))
    if optimizer.name == "adafactor":
        adafactor = optax.chain(
            optax.scale_by_factored_rms(),
            optax.clip_by_block_rms(1.0),
            optax.scale_by_param_block_rms(),
        )
        parts.append(layer_by_layer(adafactor, axes))
    elif optimizer.name == "adamw":
        parts.append(optax.scale_by_adam(b1=optimizer.b1, b2=optimizer.b2, eps=optimizer.eps))
    elif optimizer.name == "muon":
        parts.append(muon(optimizer, axes))
    if optimizer.weight_decay:
        parts.append(optax.add_decayed_weights(optimizer.weight_decay, mask=decays))
    parts.append(optax.scale_by_learning_rate(learning_rate(optimizer, steps)))
    if any(rate != 1.0 for rate in jax.tree.leaves(rates)):
        parts.append(
            optax.stateless(lambda updates, _: jax.tree.map(lambda u, r: r * u, updates, rates))
        )
    return optax.chain(*parts)
