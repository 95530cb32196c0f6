"""Causal attention within documents in plain JAX, over blocks of queries.

A block of queries reads the keys up to its own end only, so of the T x T square that causality
leaves half empty, most of the empty part is never computed: 5/8 of the work with four blocks.
The backward pass is written out, in products whose operands need no transposed copies. Together
they take a third of the time of jax.nn.dot_product_attention on CPU (docs/performance.md).

Shapes in names: see models/layers.py; R query heads per key-value head, N = R x queries of a block.
"""

from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array

QUERY_BLOCKS = 4
# Shorter blocks cost more in dispatch than they save.
MIN_QUERY_BLOCK = 64
_MASKED = -1e30  # Finite, so that no row of a softmax can be 0 / 0.


def causal_attention(
    q_BTHK: Array,
    k_BSGK: Array,
    v_BSGK: Array,
    segment_ids_BS: Array | None = None,
    first_query: Array | int = 0,
) -> Array:
    """softmax(q k^T / sqrt(K)) v over keys s <= t of the same segment; returns out_BTHK.

    Softmax in float32. Grouped queries: query heads h R … h R + R - 1 read key-value head h.
    ``first_query``: the place among the S keys of the first of the T queries.
    """
    batch, length, heads, size = q_BTHK.shape
    groups = k_BSGK.shape[2]
    q_BTGRK = (q_BTHK * size**-0.5).reshape(batch, length, groups, heads // groups, size)
    q_BGRTK = q_BTGRK.transpose(0, 2, 3, 1, 4)
    k_BGSK, v_BGSK = k_BSGK.transpose(0, 2, 1, 3), v_BSGK.transpose(0, 2, 1, 3)
    mask_B1TS = causal_mask(length, k_BSGK.shape[1], segment_ids_BS, first_query)

    block = max(MIN_QUERY_BLOCK, -(-length // QUERY_BLOCKS))
    outs = []
    for start in range(0, length, block):
        end = min(start + block, length)
        # Where the queries begin is known only on the device if the length is split over devices.
        seen = first_query + end if isinstance(first_query, int) else None
        q_BGNK = q_BGRTK[:, :, :, start:end].reshape(batch, groups, -1, size)
        mask_B1NS = jnp.tile(mask_B1TS[:, :, start:end, :seen], (1, 1, heads // groups, 1))
        out_BGNK = _attend(q_BGNK, k_BGSK[:, :, :seen], v_BGSK[:, :, :seen], mask_B1NS)
        outs.append(out_BGNK.reshape(batch, groups, heads // groups, end - start, size))
    out_BGRTK = jnp.concatenate(outs, axis=3)
    return out_BGRTK.transpose(0, 3, 1, 2, 4).reshape(q_BTHK.shape)


def attention_weights(q_BTHK: Array, k_BSGK: Array, segment_ids_BS: Array | None) -> Array:
    """p_BHTS of causal_attention, float32: what each token takes of each, to be looked at."""
    batch, length, heads, size = q_BTHK.shape
    groups = k_BSGK.shape[2]
    q_BTGRK = (q_BTHK * size**-0.5).reshape(batch, length, groups, heads // groups, size)
    scores_BGRTS = jnp.einsum(
        "btgrk,bsgk->bgrts", q_BTGRK, k_BSGK, preferred_element_type=jnp.float32
    )
    mask_B1TS = causal_mask(length, length, segment_ids_BS)
    scores_BHTS = scores_BGRTS.reshape(batch, heads, length, length)
    return jax.nn.softmax(jnp.where(mask_B1TS, scores_BHTS, _MASKED))


def attend_to_cache(
    q_BTHK: Array,
    new_k_BTGK: Array,
    new_v_BTGK: Array,
    k_BGSK: Array,
    v_BGSK: Array,
    seen_BS: Array,
) -> Array:
    """What causal_attention gives for T more tokens: they attend to the places of a cache where
    ``seen_BS`` is True, and causally to each other; returns out_BTHK. Softmax in float32."""
    batch, length, heads, size = q_BTHK.shape
    groups = new_k_BTGK.shape[2]
    shape_BTGRK = (batch, length, groups, heads // groups, size)
    q_BGRTK = (q_BTHK * size**-0.5).reshape(shape_BTGRK).transpose(0, 2, 3, 1, 4)
    q_BGNK = q_BGRTK.reshape(batch, groups, -1, size)
    k_BGTK, v_BGTK = new_k_BTGK.transpose(0, 2, 1, 3), new_v_BTGK.transpose(0, 2, 1, 3)
    before_BGNS = _product(q_BGNK, k_BGSK, 3, 3)
    before_BGNS = jnp.where(seen_BS[:, None, None], before_BGNS, _MASKED)
    own_BGNT = _product(q_BGNK, k_BGTK, 3, 3)
    if length > 1:
        mask_11TT = causal_mask(length, length, None)
        own_BGNT = jnp.where(jnp.tile(mask_11TT, (heads // groups, 1)), own_BGNT, _MASKED)
    p_BGNS = jax.nn.softmax(jnp.concatenate([before_BGNS, own_BGNT], axis=-1))
    p_BGNS = p_BGNS.astype(v_BGSK.dtype)
    out_BGNK = _product(p_BGNS[..., :-length], v_BGSK, 3, 2)
    out_BGNK += _product(p_BGNS[..., -length:], v_BGTK, 3, 2)
    out_BGRTK = out_BGNK.astype(v_BGSK.dtype).reshape(q_BGRTK.shape)
    return out_BGRTK.transpose(0, 3, 1, 2, 4).reshape(q_BTHK.shape)


def _product(a: Array, b: Array, a_axis: int, b_axis: int) -> Array:
    """Contracts one axis of each, batched over B and G, in float32."""
    numbers = (((a_axis,), (b_axis,)), ((0, 1), (0, 1)))
    return jax.lax.dot_general(a, b, numbers, preferred_element_type=jnp.float32)


@jax.custom_vjp
def _attend(q_BGNK: Array, k_BGSK: Array, v_BGSK: Array, mask_B1NS: Array) -> Array:
    return _attend_forward(q_BGNK, k_BGSK, v_BGSK, mask_B1NS)[0]


def _attend_forward(
    q_BGNK: Array, k_BGSK: Array, v_BGSK: Array, mask_B1NS: Array
) -> tuple[Array, tuple[Array, ...]]:
    scores_BGNS = jnp.where(mask_B1NS, _product(q_BGNK, k_BGSK, 3, 3), _MASKED)
    p_BGNS = jax.nn.softmax(scores_BGNS).astype(v_BGSK.dtype)
    out_BGNK = _product(p_BGNS, v_BGSK, 3, 2).astype(v_BGSK.dtype)
    return out_BGNK, (q_BGNK, k_BGSK, v_BGSK, p_BGNS, out_BGNK)


def _attend_backward(residuals: tuple[Array, ...], d_out_BGNK: Array) -> tuple[Any, ...]:
    q_BGNK, k_BGSK, v_BGSK, p_BGNS, out_BGNK = residuals
    # Of the softmax: ds = p (dp - sum p dp), and sum p dp = sum out d_out.
    shift_BGN1 = jnp.sum(
        out_BGNK.astype(jnp.float32) * d_out_BGNK.astype(jnp.float32), axis=-1, keepdims=True
    )
    ds_BGNS = (p_BGNS * (_product(d_out_BGNK, v_BGSK, 3, 3) - shift_BGN1)).astype(q_BGNK.dtype)
    return (
        _product(ds_BGNS, k_BGSK, 3, 2).astype(q_BGNK.dtype),
        _product(ds_BGNS, q_BGNK, 2, 2).astype(k_BGSK.dtype),
        _product(p_BGNS, d_out_BGNK, 2, 2).astype(v_BGSK.dtype),
        None,  # The mask.
    )


_attend.defvjp(_attend_forward, _attend_backward)


def causal_mask(
    queries: int, keys: int, segment_ids_BS: Array | None, first_query: Array | int = 0
) -> Array:
    """mask_B1TS (or mask_11TS): True where query t may attend to key s."""
    place_T = first_query + jnp.arange(queries)
    mask_11TS = (place_T[:, None] >= jnp.arange(keys))[None, None]
    if segment_ids_BS is None:
        return mask_11TS
    segment_ids_BT = jax.lax.dynamic_slice_in_dim(segment_ids_BS, first_query, queries, axis=1)
    same_B1TS = segment_ids_BT[:, None, :, None] == segment_ids_BS[:, None, None, :]
    return mask_11TS & same_B1TS
