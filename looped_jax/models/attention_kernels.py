"""Causal attention through the best kernel of the backend, on any mesh.

`xla` is models/attention.py; `splash` the Pallas TPU kernel that comes with JAX, which skips blocks
above the diagonal and keeps no T x T square; `cudnn` the fused kernel of NVIDIA GPUs behind
jax.nn.dot_product_attention. All give what models/attention.py gives.

Heads and rows are independent. Where the length is split over devices too (`sequence`), every
device has the queries of its part and brings the keys and values of all parts together, which with
grouped queries is little.

Shapes in names: see models/layers.py.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

from looped_jax.errors import UserError
from looped_jax.models.attention import causal_attention, causal_mask
from looped_jax.parallel.backend import Backend
from looped_jax.parallel.per_device import free_axes, per_device, spec_of

Array = jax.Array

# The TPU kernel works on blocks of a multiple of this many queries and keys.
SPLASH_MULTIPLE = 128
_SPLASH_BLOCK = 1024


def choose_kernel(kernel: str, backend: Backend, length: int, dtype: Any) -> str:
    """What config.model.attention stands for with so many tokens of a row on each device; UserError
    if it cannot run there."""
    half = jnp.dtype(dtype).itemsize == 2
    if kernel == "auto":
        runs = {"splash": length % SPLASH_MULTIPLE == 0, "cudnn": half}
        return backend.attention if runs.get(backend.attention) else "xla"
    if kernel == "splash" and length % SPLASH_MULTIPLE:
        raise UserError(
            f"config.model.attention='splash' needs a multiple of {SPLASH_MULTIPLE} tokens of a "
            f"row on each device; there are {length}"
        )
    if kernel == "cudnn" and (backend.platform != "gpu" or not half):
        raise UserError(
            "config.model.attention='cudnn' needs an NVIDIA GPU and config.model.dtype='bfloat16'"
        )
    return kernel


def attention(
    kernel: str,
    q_BTHK: Array,
    k_BTGK: Array,
    v_BTGK: Array,
    segment_ids_BT: Array | None,
    interpret: bool = False,
) -> Array:
    """out_BTHK of causal attention within segments, by a kernel that choose_kernel named.

    ``interpret`` runs the TPU kernel on a CPU, slowly: for tests.
    """
    axes = free_axes()
    if kernel == "xla" and axes.get("sequence", 1) == 1:
        return causal_attention(q_BTHK, k_BTGK, v_BTGK, segment_ids_BT)
    if segment_ids_BT is None:
        segment_ids_BT = jnp.ones(q_BTHK.shape[:2], jnp.int32)
    query_spec = spec_of(("batch", "length", "activation_heads", None), axes)
    batch, split, heads, _ = query_spec
    shards = axes[split] if split else 1
    if kernel == "splash":
        make = functools.partial(_splash, q_BTHK.shape[1], q_BTHK.shape[2])
        mask = make(axes.get("tensor", 1) if heads else 1, shards, interpret)
    else:
        mask = None

    def on_device(q: Array, k: Array, v: Array, segments: Array, mask: Any) -> Array:
        first = jax.lax.axis_index(split) * q.shape[1] if split else 0
        if kernel == "splash":
            return _by_splash(mask, q, k, v, segments, first)
        if kernel == "cudnn":
            return _by_cudnn(q, k, v, segments, first)
        return causal_attention(q, k, v, segments, first)

    whole = PartitionSpec(batch, None, heads, None)
    rows = PartitionSpec(batch, None)
    if not axes:
        return on_device(q_BTHK, k_BTGK, v_BTGK, segment_ids_BT, mask)
    mask_spec = None
    if mask is not None:
        # The axes by themselves: of the mesh in use some may already be written per device.
        mesh = AbstractMesh(tuple(axes.values()), tuple(axes))
        mask_spec = mask.manual_sharding_spec(NamedSharding(mesh, PartitionSpec(heads, split)))
    run = per_device(on_device, axes, (query_spec, whole, whole, rows, mask_spec), query_spec)
    return run(q_BTHK, k_BTGK, v_BTGK, segment_ids_BT, mask)


def _block(length: int) -> int:
    sizes = range(SPLASH_MULTIPLE, min(length, _SPLASH_BLOCK) + 1, SPLASH_MULTIPLE)
    return max(size for size in sizes if length % size == 0)


def _splash(length: int, heads: int, head_shards: int, length_shards: int, interpret: bool) -> Any:
    # Imported here: Pallas takes a second, which a CPU run need not spend.
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    queries, keys = _block(length // length_shards), _block(length)
    sizes = kernel.BlockSizes(
        block_q=queries,
        block_kv=keys,
        block_q_dkv=queries,
        block_kv_dkv=keys,
        use_fused_bwd_kernel=True,
    )
    causal = masks.CausalMask((length, length))
    return kernel.make_splash_mha(
        masks.MultiHeadMask([causal] * heads),
        block_sizes=sizes,
        head_shards=head_shards,
        q_seq_shards=length_shards,
        interpret=interpret,
    )


def splash_flops(
    kernel_name: str, result_dims: Sequence[tuple[int, ...]], config: Any, length_shards: int
) -> float:
    """FLOPs of one call of the TPU kernel on a device, as the compiled program names it.

    Blocks above the diagonal are skipped; blocks on it are computed whole. 0 for other calls.
    """
    products = {"splash_mha_fwd": 2, "splash_mha_dkv": 5}.get(kernel_name[:14], 0)
    if not products:
        return 0.0
    # The last result is [batch, heads, length, …], without its first axis for one row on a device;
    # the last axis is a head's size or, in what the forward pass leaves the other, a register's.
    batch, heads, *_ = (1, *result_dims[-1])[-4:]
    size, length = config.head_dim, config.max_length
    blocks = length // _block(length)
    share = (blocks + 1) / (2 * blocks)
    return products * 2.0 * batch * heads * size * share * length * length / length_shards


def _by_splash(
    mask: Any, q_BTHK: Array, k_BSGK: Array, v_BSGK: Array, segment_ids_BS: Array, first: Any
) -> Array:
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel

    size = q_BTHK.shape[-1]
    own_BT = jax.lax.dynamic_slice_in_dim(segment_ids_BS, first, q_BTHK.shape[1], axis=1)
    q_BHTK, k_BGSK, v_BGSK = (x.swapaxes(1, 2) for x in (q_BTHK * size**-0.5, k_BSGK, v_BSGK))
    segments = kernel.SegmentIds(own_BT, segment_ids_BS)
    out_BHTK = jax.vmap(lambda q, k, v, s: mask(q, k, v, segment_ids=s))(
        q_BHTK, k_BGSK, v_BGSK, segments
    )
    return out_BHTK.swapaxes(1, 2)


def _by_cudnn(
    q_BTHK: Array, k_BSGK: Array, v_BSGK: Array, segment_ids_BS: Array, first: Any
) -> Array:
    mask_B1TS = causal_mask(q_BTHK.shape[1], k_BSGK.shape[1], segment_ids_BS, first)
    return jax.nn.dot_product_attention(
        q_BTHK, k_BSGK, v_BSGK, mask=mask_B1TS, implementation="cudnn"
    )
