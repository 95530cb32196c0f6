"""Causal attention within documents, over blocks of queries.

A block of queries reads the keys up to its own end only, so of the T x T square that causality
leaves half empty, most of the empty part is never computed: 5/8 of the work with four blocks.
On CPU this takes half the time of jax.nn.dot_product_attention (docs/performance.md).
"""

import jax
import jax.numpy as jnp

Array = jax.Array

QUERY_BLOCKS = 4
# Shorter blocks cost more in dispatch than they save.
MIN_QUERY_BLOCK = 64
_MASKED = -1e30  # Finite: a row of padding that sees only itself stays finite too.


def causal_attention(
    q_BTHK: Array, k_BTGK: Array, v_BTGK: Array, segment_ids_BT: Array | None = None
) -> Array:
    """softmax(q k^T / sqrt(K)) v over keys s <= t of the same segment; returns out_BTHK.

    Softmax in float32. Grouped queries: heads h R … h R + R - 1 read key-value head h, R = H / G.
    """
    batch, length, heads, size = q_BTHK.shape
    groups = k_BTGK.shape[2]
    q_BGRTK = q_BTHK.reshape(batch, length, groups, heads // groups, size).transpose(0, 2, 3, 1, 4)
    k_BGTK, v_BGTK = k_BTGK.transpose(0, 2, 1, 3), v_BTGK.transpose(0, 2, 1, 3)
    mask_B11TS = causal_mask(length, segment_ids_BT)[:, None]

    block = max(MIN_QUERY_BLOCK, -(-length // QUERY_BLOCKS))
    outs = []
    for start in range(0, length, block):
        end = min(start + block, length)
        scores_BGRTS = jnp.einsum(
            "bgrtk,bgsk->bgrts",
            q_BGRTK[:, :, :, start:end],
            k_BGTK[:, :, :end],
            preferred_element_type=jnp.float32,
        )
        mask = mask_B11TS[..., start:end, :end]
        weights_BGRTS = jax.nn.softmax(jnp.where(mask, scores_BGRTS * size**-0.5, _MASKED))
        weights_BGRTS = weights_BGRTS.astype(v_BTGK.dtype)
        outs.append(jnp.einsum("bgrts,bgsk->bgrtk", weights_BGRTS, v_BGTK[:, :, :end]))
    out_BGRTK = jnp.concatenate(outs, axis=3)
    return out_BGRTK.transpose(0, 3, 1, 2, 4).reshape(q_BTHK.shape)


def causal_mask(length: int, segment_ids_BT: Array | None) -> Array:
    """mask_B1TS (or mask_11TS): True where query t may attend to key s."""
    mask_11TS = jnp.tril(jnp.ones((1, 1, length, length), dtype=bool))
    if segment_ids_BT is None:
        return mask_11TS
    same_B1TS = segment_ids_BT[:, None, :, None] == segment_ids_BT[:, None, None, :]
    return mask_11TS & same_B1TS
