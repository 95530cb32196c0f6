"""Checksums of arrays, by which one flipped bit in a checkpoint is found.

They are sums of the arrays' bits as unsigned integers, modulo 2^32, each weighted by its place.
Sums do not depend on the order, so every device sums its own shards, and any mesh gets the same. A
flipped bit changes both sums: their weights are odd, and an odd number times a power of two up to
2^31 is never a multiple of 2^32.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from looped_jax.parallel.mesh import replicated

Checksums = dict[str, list[int]]


def checksums(tree: Any) -> Checksums:
    """Path of each array of a tree -> its two sums. All lie on one mesh."""
    mesh = jax.tree.leaves(tree)[0].sharding.mesh
    sums = jax.device_get(_on_mesh(mesh)(tree))
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): two.tolist()
        for path, two in jax.tree_util.tree_leaves_with_path(sums)
    }


@functools.lru_cache
def _on_mesh(mesh: Mesh) -> Callable[[Any], Any]:
    return jax.jit(lambda tree: jax.tree.map(_sums, tree), out_shardings=replicated(mesh))


def _sums(array: jax.Array) -> jax.Array:
    bits = jax.lax.bitcast_convert_type(array, jnp.dtype(f"uint{8 * array.dtype.itemsize}"))
    bits = bits.astype(jnp.uint32)
    place = jnp.zeros(array.shape, jnp.uint32)
    for axis in range(array.ndim):
        stride = math.prod(array.shape[axis + 1 :]) % 2**32
        here = jax.lax.broadcasted_iota(jnp.uint32, array.shape, axis)
        place += here * jnp.uint32(stride)
    # Knuth's multiplicative hash, whose high bits then reach the low ones.
    hashed = place * jnp.uint32(2654435761)
    hashed ^= hashed >> 15
    one = jnp.uint32(1)
    weighted = (bits * (hashed | one), bits * (2 * place + one))
    return jnp.stack([jnp.sum(w, dtype=jnp.uint32) for w in weighted])
