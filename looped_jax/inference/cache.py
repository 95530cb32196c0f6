"""The key-value cache of a looped model, and the two steps that use it.

A token passes D = sum of k L layers, and in each it leaves a key and a value: the same layer in
another loop has others. So the cache has D entries per token, though the model has only the
parameters of k layers.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from looped_jax.models.layers import KeyValues, ModelConfig
from looped_jax.models.transformer import Inference, LoopedTransformer

# Logical axes of a segment's cache [L, k, B, G, S, K].
_AXES = (None, "layers", "batch", "activation_heads", "cache", "head_dim")


@struct.dataclass
class Cache:
    """Keys and values of all tokens so far: row b has ``length_B[b]`` of them."""

    segments: tuple[KeyValues, ...]
    length_B: jax.Array

    @property
    def capacity(self) -> int:
        """S, tokens that a row can hold."""
        return self.segments[0].k.shape[-2]


def cache_bytes(config: ModelConfig, rows: int, capacity: int, loops: int | None = None) -> int:
    """Memory of a cache: D x 2 x rows x capacity x G x K values of the compute type."""
    depth = config.plan.with_loops(loops).effective_depth
    numbers = depth * 2 * rows * capacity * config.num_kv_heads * config.head_dim
    return numbers * jnp.dtype(config.dtype).itemsize


def prefill(
    model: LoopedTransformer,
    params: Any,
    tokens_BT: jax.Array,
    length_B: jax.Array,
    capacity: int,
    loops: int | None = None,
) -> tuple[jax.Array, Cache]:
    """Reads prompts; returns logits_BV of what follows each, and the cache.

    Args:
      tokens_BT: prompts, padded on the right with anything.
      length_B: int32, tokens of each prompt, at least 1.
      capacity: S >= T, tokens that the cache can hold.
      loops: as in LoopedTransformer.
    """
    inference = Inference(length_B)
    logits_BV, kept = model.apply({"params": params}, tokens_BT, loops=loops, inference=inference)
    room = capacity - tokens_BT.shape[1]

    def grow(array: jax.Array) -> jax.Array:
        grown = jnp.pad(array, ((0, 0),) * 4 + ((0, room), (0, 0)))
        return nn.with_logical_constraint(grown, _AXES)

    return logits_BV, Cache(jax.tree.map(grow, kept), length_B)


def decode(
    model: LoopedTransformer,
    params: Any,
    token_B: jax.Array,
    cache: Cache,
    loops: int | None = None,
) -> tuple[jax.Array, Cache]:
    """Reads one more token per row; returns logits_BV of what follows, and the cache with it.

    A row that is full stays as it is: its last place is overwritten.
    """
    inference = Inference(cache.length_B, cache.segments)
    logits_BV, kept = model.apply(
        {"params": params},
        token_B[:, None],
        positions_BT=cache.length_B[:, None],
        loops=loops,
        inference=inference,
    )
    at_B = jnp.minimum(cache.length_B, cache.capacity - 1)
    rows_B = jnp.arange(len(at_B))

    def write(old: jax.Array, new: jax.Array) -> jax.Array:
        # [L, k, B, G, S, K] <- [L, k, B, G, 1, K], at another place in each row. B and S are
        # indexed, with G between them: the indexed axes come first in what is set.
        new = jnp.moveaxis(new[..., 0, :], 2, 0)
        return old.at[:, :, rows_B, :, at_B].set(new)

    segments = jax.tree.map(write, cache.segments, kept)
    length_B = jnp.minimum(cache.length_B + 1, cache.capacity)
    return logits_BV, Cache(segments, length_B)
