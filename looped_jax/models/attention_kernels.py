"""Causal attention through the best kernel of the backend, on any mesh.

`xla` is models/attention.py. The others keep no T x T square and skip what is above the diagonal:

* `splash`, the Pallas TPU kernel that comes with JAX;
* `cudnn`, NVIDIA's own behind jax.nn.dot_product_attention. Documents of a packed row it can only
  be told in a mask [B, 1, T, T], which is read beside the scores and given a gradient; rows of one
  document need none. (Its packed form, in JAX's private modules, needs a bound on the documents of
  a row, and its softmax statistics are as many times larger.)
* `triton`, the Pallas GPU kernel that comes with JAX, which reads documents' numbers [B, T].

All give what models/attention.py gives, `cudnn` for rows of one document only where there is a
token: its padding attends to the document before it.

Heads and rows are independent. Where the length is split over devices too (`sequence`), every
device has the queries of its part and brings the keys and values of all parts together, which with
grouped queries is little.

Shapes in names: see models/layers.py.
"""

import dataclasses
import functools
import importlib
import importlib.util
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
# Larger heads' blocks do not fit into the shared memory of an L4 or A100; smaller ones are less
# than a product of Triton's takes.
TRITON_HEADS = (16, 128)
_TRITON = "jax.experimental.pallas.ops.gpu.attention"


def choose_kernel(
    kernel: str,
    backend: Backend,
    *,
    length: int,
    head_size: int,
    dtype: Any,
    packed: bool = True,
    split: bool = False,
) -> str:
    """What config.model.attention stands for: xla | splash | cudnn | triton.

    ``length``: tokens of a row on each device, ``split`` if the row has others elsewhere;
    ``packed``: rows may hold several documents. UserError if what is asked for cannot run.
    """

    def refusal(name: str) -> str:
        return _refusal(name, backend, length, head_size, jnp.dtype(dtype), split)

    if kernel == "auto":
        preferred = backend.packed_attention if packed else backend.attention
        return next((name for name in preferred if not refusal(name)), "xla")
    if why := refusal(kernel):
        raise UserError(f"config.model.attention={kernel!r} {why}")
    return kernel


def _refusal(
    kernel: str, backend: Backend, length: int, head_size: int, dtype: jnp.dtype, split: bool
) -> str:
    """What a kernel needs that is not so here; nothing if it can run.

    Of cuDNN: the rules of jax/_src/cudnn/fused_attention_stablehlo.py, which would raise within a
    trace. Its odd lengths are padded (_by_cudnn).
    """
    if kernel == "splash" and length % SPLASH_MULTIPLE:
        return (
            f"needs a multiple of {SPLASH_MULTIPLE} tokens of a row on each device; "
            f"there are {length}"
        )
    if kernel not in ("cudnn", "triton"):
        return ""
    if backend.capability < (8, 0):
        return "needs an NVIDIA GPU of compute capability 8.0 (A100, L4, H100) or later"
    if dtype not in (jnp.bfloat16, jnp.float16):
        return f"needs config.model.dtype='bfloat16'; it is {dtype.name!r}"
    if kernel == "cudnn":
        largest = 256 if backend.capability >= (9, 0) else 128
        if head_size % 8 or head_size > largest:
            return (
                f"needs heads of a multiple of 8, here up to {largest}; they are of {head_size} "
                "(config.model.head_size, or d_model / num_heads)"
            )
        return ""
    smallest, largest = TRITON_HEADS
    if not smallest <= head_size <= largest:
        return (
            f"needs heads of {smallest} to {largest}; they are of {head_size} "
            "(config.model.head_size, or d_model / num_heads)"
        )
    if split:
        return "takes whole rows; config.mesh.sequence must be 1"
    if importlib.util.find_spec(_TRITON) is None:
        return f"needs {_TRITON}, which this release of JAX is without; 'cudnn' does not"
    return ""


def attention(
    kernel: str,
    q_BTHK: Array,
    k_BTGK: Array,
    v_BTGK: Array,
    segment_ids_BT: Array | None,
    *,
    one_document: bool = False,
    interpret: bool = False,
) -> Array:
    """out_BTHK of causal attention within segments, by a kernel that choose_kernel named.

    ``one_document``: nothing follows a row's first segment but padding. ``interpret`` runs a Pallas
    kernel on a CPU, slowly: for tests.
    """
    axes = free_axes()
    if kernel == "xla" and axes.get("sequence", 1) == 1:
        return causal_attention(q_BTHK, k_BTGK, v_BTGK, segment_ids_BT)
    if kernel == "cudnn" and one_document:
        segment_ids_BT = None  # What is before a token is its own document.
    elif segment_ids_BT is None and kernel != "cudnn":
        segment_ids_BT = jnp.ones(q_BTHK.shape[:2], jnp.int32)
    query_spec = spec_of(("batch", "length", "activation_heads", None), axes)
    batch, split, heads, _ = query_spec
    shards = axes[split] if split else 1
    if kernel == "splash":
        make = functools.partial(_splash, q_BTHK.shape[1], q_BTHK.shape[2])
        mask = make(axes.get("tensor", 1) if heads else 1, shards, interpret)
    else:
        mask = None

    def on_device(q: Array, k: Array, v: Array, segments: Any, mask: Any) -> Array:
        first: Any = jax.lax.axis_index(split) * q.shape[1] if split else 0
        if kernel == "splash":
            return _by_splash(mask, q, k, v, segments, first)
        if kernel == "cudnn":
            return _by_cudnn(q, k, v, segments, first if shards > 1 else None)
        if kernel == "triton":
            return _by_triton(q, k, v, segments, interpret)
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
    q_BTHK: Array, k_BSGK: Array, v_BSGK: Array, segment_ids_BS: Array | None, first: Array | None
) -> Array:
    """``first``: the place of the first query among the keys; None where rows are whole."""
    length, keys = q_BTHK.shape[1], k_BSGK.shape[1]
    mask_B1TS = None
    if segment_ids_BS is not None or first is not None:
        mask_B1TS = causal_mask(length, keys, segment_ids_BS, 0 if first is None else first)
        mask_B1TS = _padded(_padded(mask_B1TS, 2, axis=2), 2, axis=3)
    # JAX refuses odd lengths where there is a gradient. The key that is added comes after all
    # queries (and the mask is without it), and the query that is added is dropped.
    out_BTHK = jax.nn.dot_product_attention(
        _padded(q_BTHK, 2),
        _padded(k_BSGK, 2),
        _padded(v_BSGK, 2),
        mask=mask_B1TS,
        is_causal=first is None,
        implementation="cudnn",
    )
    return out_BTHK[:, :length]


def _by_triton(
    q_BTHK: Array, k_BTGK: Array, v_BTGK: Array, segment_ids_BT: Array, interpret: bool
) -> Array:
    # Imported here: Pallas takes a second, which a CPU run need not spend.
    kernel = importlib.import_module(_TRITON)
    length, heads, size = q_BTHK.shape[1:]
    # Blocks of 128 need 80 KB of shared memory with heads of 64, and so do blocks of 64 with heads
    # of 128; an L4 has 99 KB.
    block = 128 if size <= 64 and length % 128 == 0 else 64
    # The kernel knows no groups: each query head gets a copy of its keys and values.
    k_BTHK, v_BTHK = (jnp.repeat(x, heads // x.shape[2], axis=2) for x in (k_BTGK, v_BTGK))
    out_BTHK = kernel.mha(
        *(_padded(x, block) for x in (q_BTHK, k_BTHK, v_BTHK, segment_ids_BT)),
        sm_scale=size**-0.5,
        causal=True,
        block_sizes=dataclasses.replace(
            kernel.BlockSizes.get_default(), block_q=block, block_k=block
        ),
        interpret=interpret,
    )
    return out_BTHK[:, :length]


def _padded(array: Array, multiple: int, axis: int = 1) -> Array:
    """With zeros after the end of this axis, up to a multiple."""
    widths = [(0, 0)] * array.ndim
    widths[axis] = (0, -array.shape[axis] % multiple)
    return jnp.pad(array, widths)
