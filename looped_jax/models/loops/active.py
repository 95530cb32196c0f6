"""Loops in which not all tokens of a row are (LoopVariant.active): what their layers are given.

Either all tokens go through the layers and those that are not in the loop are not seen, or only
those that are in it go through them, P of every row, gathered in their order and put back.
"""

import jax
import jax.numpy as jnp

from looped_jax.models.layers import Array, LayerInputs

# Documents are numbered from 1, padding is 0 (data/rows.py): nobody in the loop sees this one.
NOBODY = -1


def among(active_BT: Array, inputs: LayerInputs) -> LayerInputs:
    """Tokens that are active see those of their own document that are, and no others."""
    own_BT = inputs.segment_ids_BT
    ids_BT = jnp.where(active_BT, 1 if own_BT is None else own_BT, NOBODY)
    return inputs.replace(segment_ids_BT=ids_BT, one_document=False)


def seen_in(slot: Array, inputs: LayerInputs) -> LayerInputs:
    """Of a cache, only tokens are seen that were in this loop."""
    cache = inputs.cache
    assert cache is not None and cache.used is not None
    used_BS = jax.lax.dynamic_index_in_dim(cache.used, slot, axis=0, keepdims=False)
    return inputs.replace(seen_BS=inputs.seen_BS & used_BS)


def gathered(
    active_BT: Array, places: int, x_BTD: Array, inputs: LayerInputs
) -> tuple[Array, LayerInputs]:
    """x_BPD of the active tokens, of which every row has ``places``, in their order, and what
    layers are given of them. Attention's kernels are chosen for whole rows: shorter ones take the
    plain one."""
    index_BP = jnp.argsort(~active_BT, axis=1, stable=True)[:, :places]

    def taken(array: Array) -> Array:
        if array.ndim < 2 or array.shape[1] == 1:  # The same for all tokens of a row.
            return array
        return _taken(jnp.broadcast_to(array, (len(index_BP), *array.shape[1:])), index_BP)

    return taken(x_BTD), jax.tree.map(taken, inputs).replace(kernel="xla")


def put_back(active_BT: Array, x_BPD: Array, x_BTD: Array) -> Array:
    """x_BTD with what became of the tokens that were gathered."""
    place_BT = jnp.maximum(jnp.cumsum(active_BT, axis=1) - 1, 0)
    return jnp.where(active_BT[..., None], _taken(x_BPD, place_BT), x_BTD)


def _taken(array: Array, index: Array) -> Array:
    """Of each row of [B, T, …] the tokens of this index [B, P]. (Both ways are gathers within rows,
    which stay on their devices.)"""
    index = index.reshape(*index.shape, *(1,) * (array.ndim - 2))
    return jnp.take_along_axis(array, index, axis=1)
