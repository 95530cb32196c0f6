"""Checksums of arrays, by which one flipped bit in a checkpoint is found.

A checksum is the sum of an array's bits as unsigned integers, modulo 2^32, each weighted by its
place. A sum does not depend on the order, so every device sums its own shards, and any mesh gets
the same. A flipped bit changes it: weights are odd, and an odd number times a power of two up to
2^31 is never a multiple of 2^32.
"""

import concurrent.futures
import functools
import math
import os
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from looped_jax.parallel import distributed
from looped_jax.parallel.backend import backend_of
from looped_jax.parallel.mesh import replicated

Checksums = dict[str, int]

# Numbers that a thread sums at a time.
_CHUNK = 1 << 20


def checksums(tree: Any) -> Checksums:
    """Path of each array of a tree -> its checksum. All lie on one mesh."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    mesh = leaves[0][1].sharding.mesh
    here = backend_of(mesh).arrays_in_host_memory and not distributed.several()
    sums = _by_numpy(tree) if here else jax.device_get(_by_devices(mesh)(tree))
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): int(value)
        for (path, _), value in zip(leaves, jax.tree.leaves(sums), strict=True)
    }


def _column_weights(columns: Any) -> Any:
    return 2 * columns + 1


def _row_weights(rows: Any) -> Any:
    # Knuth's multiplicative hash, whose high bits then reach the low ones.
    hashed = rows * np.uint32(2654435761)
    return (hashed ^ (hashed >> np.uint32(15))) | np.uint32(1)


def _row_numbers(shape: tuple[int, ...], start: tuple[int, ...], whole: tuple[int, ...]) -> Any:
    """Numbers of the rows (all axes but the last) of a part of an array, with one column."""
    numbers = np.zeros((*shape[:-1], 1), np.uint32)
    for axis in range(len(shape) - 1):
        stride = math.prod(whole[axis + 1 : -1]) % 2**32
        place = np.arange(start[axis], start[axis] + shape[axis], dtype=np.uint32)
        along = [1] * len(shape)
        along[axis] = -1
        numbers += (place * np.uint32(stride)).reshape(along)
    return numbers


@functools.lru_cache
def _by_devices(mesh: Mesh) -> Callable[[Any], Any]:
    def one(array: jax.Array) -> jax.Array:
        array = jnp.atleast_1d(array)
        bits = jax.lax.bitcast_convert_type(array, jnp.dtype(f"uint{8 * array.dtype.itemsize}"))
        rows = jnp.zeros((*array.shape[:-1], 1), jnp.uint32)
        for axis in range(array.ndim - 1):
            stride = math.prod(array.shape[axis + 1 : -1]) % 2**32
            rows += jax.lax.broadcasted_iota(jnp.uint32, rows.shape, axis) * jnp.uint32(stride)
        columns = jnp.arange(array.shape[-1], dtype=jnp.uint32)
        weights = _row_weights(rows) * _column_weights(columns)
        return jnp.sum(bits.astype(jnp.uint32) * weights, dtype=jnp.uint32)

    return jax.jit(lambda tree: jax.tree.map(one, tree), out_shardings=replicated(mesh))


def _by_numpy(tree: Any) -> Any:
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as threads:
        parts = jax.tree.map(lambda array: [threads.submit(*p) for p in _parts(array)], tree)
    is_leaf = lambda node: isinstance(node, list)  # noqa: E731
    return jax.tree.map(
        lambda futures: sum(f.result() for f in futures) % 2**32, parts, is_leaf=is_leaf
    )


def _parts(array: jax.Array) -> Iterator[tuple[Any, ...]]:
    """Calls that together sum an array."""
    for shard in array.addressable_shards:
        if shard.replica_id:
            continue
        data = np.atleast_1d(np.asarray(shard.data))
        whole = array.shape or (1,)
        start = tuple(s.indices(n)[0] for s, n in zip(shard.index, whole, strict=False)) or (0,)
        bits = data.view(f"u{data.dtype.itemsize}").reshape(-1, data.shape[-1])
        rows = _row_numbers(data.shape, start, whole).reshape(-1)
        columns = np.arange(start[-1], start[-1] + data.shape[-1], dtype=np.uint32)
        step = max(1, _CHUNK // max(1, data.shape[-1]))
        for at in range(0, len(bits), step):
            yield _sum, bits[at : at + step], rows[at : at + step], columns


def _sum(bits_RC: np.ndarray, rows_R: np.ndarray, columns_C: np.ndarray) -> int:
    bits_RC = bits_RC.astype(np.uint32, copy=False)
    # Along rows first, and by einsum: half the time of a product of integers, which has no BLAS.
    of_columns_C = np.einsum("r,rc->c", _row_weights(rows_R), bits_RC)
    return int(of_columns_C @ _column_weights(columns_C))
