"""The pieces of a decoder layer: normalisation, rotary positions, attention, MLP, and the layer.

Shapes in names: B batch, T query length, S key length, D model, H heads, G key-value heads,
K head size, F MLP width, V vocabulary. Parameters are float32 and carry logical axis names;
`dtype` is the compute type.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax.ad_checkpoint import checkpoint_name
from ml_collections import ConfigDict

from looped_jax.config import UserError
from looped_jax.models.attention import attend_to_cache
from looped_jax.models.attention_kernels import attention, choose_kernel
from looped_jax.models.loop_plan import LoopPlan
from looped_jax.parallel.per_device import split_axes

Array = jax.Array
Rotation = tuple[Array, Array] | None


@struct.dataclass
class KeyValues:
    """Keys (rotated) and values of tokens: in one layer k_BGSK and v_BGSK; with the axes of the
    scans in front, [L, k, B, G, S, K], in a segment."""

    k: Array
    v: Array


@struct.dataclass
class LayerInputs:
    """What every layer of every loop is given beside the residual stream.

    When decoding: ``cache`` is the whole segment's, [L, k, B, G, S, K], from which a layer takes
    its own part at once (a scan over it would copy each loop's part first, then each layer's);
    ``seen_BS`` tells the places in use.
    """

    rotation: Rotation
    segment_ids_BT: Array | None = None
    cache: KeyValues | None = None
    seen_BS: Array | None = None


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """What a model is, hashable. Fields as in config.model; see looped_jax/config.py."""

    plan: LoopPlan
    vocab_size: int
    max_length: int
    d_model: int = 256
    num_heads: int = 8
    num_kv_heads: int = 8
    d_ff: int = 1024
    mlp: str = "gelu"
    bias: bool = False
    norm: str = "rmsnorm"
    positions: str = "rope"
    rope_theta: float = 10000.0
    tied_output: bool = True
    loop: tuple[tuple[str, str], ...] = ()  # Option of config.loop, variant; see models/loops/.
    beyond_trained: str = "last"
    dtype: Any = jnp.float32
    remat: str = "none"
    saved_names: tuple[str, ...] = ()
    offloaded_names: tuple[str, ...] = ()
    unroll: str = "auto"
    attention: str = "xla"
    gather: str = "layer"
    logits_mb: int = 1024
    platform: str = "cpu"  # What it will run on: cpu | gpu | tpu.
    ids_in_use: int = 0  # Ids from here on pad the vocabulary; 0: none does.
    head_size: int = 0  # 0: d_model / num_heads. The constructions in theory/ need others.

    @property
    def head_dim(self) -> int:
        return self.head_size or self.d_model // self.num_heads

    def with_loops(self, loops: int | None) -> LoopPlan:
        """The plan with other loop counts, as LoopPlan.with_loops; UserError, too, for more loops
        than there are parameters for."""
        plan = self.plan.with_loops(loops)
        refuses = "per_loop" in dict(self.loop) and self.beyond_trained == "refuse"
        if refuses and any(s.loops > s.trained_loops for s in plan.segments):
            raise UserError(
                f"loops={loops}: plan {self.plan} has no parameters for so many loops; "
                "config.loop.beyond_trained='last' or 'mean' says which they take"
            )
        return plan

    @classmethod
    def from_config(
        cls,
        config: ConfigDict,
        *,
        vocab_size: int,
        max_length: int,
        platform: str = "cpu",
        length_shards: int = 1,
    ) -> "ModelConfig":
        """Resolves config.model and config.loop for data with this vocabulary and row length,
        on a platform and with rows split over so many devices.

        UserError if config.model.vocab_size is less than the data's, or config.model.attention
        cannot run on the platform.
        """
        model, loop = config.model, config.loop.to_dict()
        if 0 < model.vocab_size < vocab_size:
            raise UserError(
                f"config.model.vocab_size={model.vocab_size} is less than the data's vocabulary of "
                f"{vocab_size}; 0 takes the data's"
            )
        fields = {**model.to_dict(), "max_length": max_length, "platform": platform}
        fields["plan"] = LoopPlan.parse(model.plan)
        fields["beyond_trained"] = loop.pop("beyond_trained")
        fields["loop"] = tuple(sorted((k, name) for k, name in loop.items() if name != "none"))
        fields["vocab_size"] = model.vocab_size or 8 * -(-vocab_size // 8)
        fields["ids_in_use"] = vocab_size
        fields["num_kv_heads"] = model.num_kv_heads or model.num_heads
        fields["dtype"] = jnp.dtype(model.dtype)
        fields["attention"] = choose_kernel(
            model.attention, platform, max_length // length_shards, model.dtype
        )
        return cls(**fields)


@struct.dataclass
class NamedAxes(nn.LogicallyPartitioned):
    """A parameter with its logical axis names.

    Flax's own box constrains the sharding whenever it is opened, also where DenseGeneral holds a
    kernel flattened and the names do not fit. Shardings are set from outside here.
    """

    def unbox(self, apply_constraint: bool = True) -> Any:
        return super().unbox(apply_constraint=False)


def partitioned(init: Callable[..., Array], *logical_axes: str) -> Callable[..., Any]:
    """An initialiser whose parameter carries logical axis names."""
    return lambda *args: NamedAxes(init(*args), logical_axes)


def norm(config: ModelConfig, name: str) -> Callable[[Array], Array]:
    """The configured normalisation over D; statistics in float32."""
    if config.norm == "none":
        return lambda x_BTD: x_BTD
    scale_init = partitioned(nn.initializers.ones_init(), "embed")
    if config.norm == "rmsnorm":
        return nn.RMSNorm(dtype=config.dtype, scale_init=scale_init, name=name)
    bias_init = partitioned(nn.initializers.zeros_init(), "embed")
    return nn.LayerNorm(dtype=config.dtype, scale_init=scale_init, bias_init=bias_init, name=name)


def flat_dot_general(
    x: Array, kernel: Array, dimension_numbers: Any, precision: Any = None, **kwargs: Any
) -> Array:
    """`lax.dot_general` of x [..., contracted] with a kernel [contracted, features], as one
    product of two matrices: for CPUs.

    The same numbers; but from a product of three-dimensional arrays JAX derives a weight gradient
    for which XLA's CPU backend writes the other operand out transposed, with all the element-wise
    work before it done again in that order: an MLP takes 1.7 times as long (docs/performance.md).
    """
    (x_axes, kernel_axes), _ = dimension_numbers
    count = len(kernel_axes)
    assert tuple(kernel_axes) == tuple(range(count))
    assert tuple(x_axes) == tuple(range(x.ndim - count, x.ndim))
    inner = math.prod(kernel.shape[:count])
    out = jax.lax.dot_general(
        x.reshape(-1, inner),
        kernel.reshape(inner, -1),
        (((1,), (0,)), ((), ())),
        precision=precision,
        **kwargs,
    )
    return out.reshape(*x.shape[: x.ndim - count], *kernel.shape[count:])


def _dot_general(config: ModelConfig) -> Callable[..., Array] | None:
    """None is `lax.dot_general`. A length split over devices must stay a dimension of its own:
    merged with the rows it has no tiled sharding, and each device would compute all of it."""
    flat = config.platform == "cpu" and not split_axes(("sequence",))
    return flat_dot_general if flat else None


def dense(
    config: ModelConfig,
    name: str,
    features: int | tuple[int, ...],
    axes: tuple[str, ...],
    contracted: int = 1,
) -> nn.DenseGeneral:
    """A projection over the last ``contracted`` dimensions; ``axes`` name its kernel's."""
    out_axes = axes[contracted:]
    return nn.DenseGeneral(
        features,
        axis=tuple(range(-contracted, 0)),
        use_bias=config.bias,
        dtype=config.dtype,
        kernel_init=partitioned(nn.initializers.lecun_normal(), *axes),
        bias_init=partitioned(nn.initializers.zeros_init(), *out_axes),
        dot_general=_dot_general(config),
        name=name,
    )


def rope_angles(config: ModelConfig, positions_BT: Array) -> Rotation:
    """cos and sin of position x frequency, each [B, T, 1, K / 2], float32; None without RoPE.

    Computed once for all layers and loops: sines cost as much as the rest of the rotation.
    """
    if config.positions != "rope":
        return None
    half = config.head_dim // 2
    frequency_K = config.rope_theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle_BT1K = positions_BT[..., None, None].astype(jnp.float32) * frequency_K
    return jnp.cos(angle_BT1K), jnp.sin(angle_BT1K)


def rope(x_BTHK: Array, rotation: Rotation) -> Array:
    """Rotary position embedding (Su et al. 2021), halves convention, computed in float32."""
    if rotation is None:
        return x_BTHK
    cos, sin = rotation
    first, second = jnp.split(x_BTHK.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x_BTHK.dtype)


def named(config: ModelConfig, x: Array, name: str) -> Array:
    """x_BTHK or x_BTF under a name that config.saved_names may ask for.

    It is kept as [B, T, HK]: a TPU pads a head's size of 64 to 128.
    """
    if config.remat != "names":
        return x
    return checkpoint_name(x.reshape(*x.shape[:2], -1), name).reshape(x.shape)


def _part(array: Array, loop: Array, layer: Array) -> Array:
    """[L, k, …] -> […] in one slice."""
    start = (loop, layer) + (0,) * (array.ndim - 2)
    return jax.lax.dynamic_slice(array, start, (1, 1, *array.shape[2:]))[0, 0]


class Attention(nn.Module):
    """Causal grouped-query attention within segments; softmax in float32.

    With a cache, T is 1 and the token attends to what is cached for this loop and layer (``at``)
    and to itself. ``keep``: whether the keys and values of the tokens given are returned too.
    """

    config: ModelConfig
    keep: bool = False

    @nn.compact
    def __call__(
        self, x_BTD: Array, inputs: LayerInputs, at: tuple[Array, Array] | None = None
    ) -> tuple[Array, KeyValues | None]:
        config = self.config
        heads, groups, size = config.num_heads, config.num_kv_heads, config.head_dim
        q_BTHK = dense(config, "query", (heads, size), ("embed", "heads", "head_dim"))(x_BTD)
        k_BTGK = dense(config, "key", (groups, size), ("embed", "kv_heads", "head_dim"))(x_BTD)
        v_BTGK = dense(config, "value", (groups, size), ("embed", "kv_heads", "head_dim"))(x_BTD)
        q_BTHK, k_BTGK = rope(q_BTHK, inputs.rotation), rope(k_BTGK, inputs.rotation)
        q_BTHK = nn.with_logical_constraint(
            q_BTHK, ("batch", "length", "activation_heads", "head_dim")
        )
        q_BTHK, k_BTGK = named(config, q_BTHK, "query"), named(config, k_BTGK, "key")
        v_BTGK = named(config, v_BTGK, "value")
        if inputs.cache is None:
            # No TPU kernel takes the two tokens of initialisation.
            kernel = "xla" if self.is_initializing() else config.attention
            out_BTHK = attention(kernel, q_BTHK, k_BTGK, v_BTGK, inputs.segment_ids_BT)
            out_BTHK = named(config, out_BTHK, "attended")
        else:
            assert at is not None and inputs.seen_BS is not None
            own = (q_BTHK[:, 0], k_BTGK[:, 0], v_BTGK[:, 0])
            k_BGSK, v_BGSK = (_part(x, *at) for x in (inputs.cache.k, inputs.cache.v))
            out_BTHK = attend_to_cache(*own, k_BGSK, v_BGSK, inputs.seen_BS)[:, None]
        axes = ("heads", "head_dim", "embed")
        out_BTD = dense(config, "output", config.d_model, axes, contracted=2)(out_BTHK)
        kept = KeyValues(k_BTGK.swapaxes(1, 2), v_BTGK.swapaxes(1, 2)) if self.keep else None
        return out_BTD, kept


def storing_derivative(activation: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """An element-wise function which computes its derivative in the forward pass.

    A scan then keeps one array per call for the backward pass, the derivative, instead of every
    intermediate: less memory, and on CPU a sixth off an MLP's time (docs/performance.md).
    """

    @jax.custom_vjp
    def function(x: Array) -> Array:
        return activation(x)

    def forward(x: Array) -> tuple[Array, Array]:
        return jax.jvp(activation, (x,), (jnp.ones_like(x),))

    function.defvjp(forward, lambda derivative, gradient: (gradient * derivative,))
    return function


gelu = storing_derivative(nn.gelu)
silu = storing_derivative(nn.silu)


class MLP(nn.Module):
    """GELU (tanh form) or ReLU MLP, or SwiGLU (three matrices)."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x_BTD: Array) -> Array:
        config = self.config
        hidden_BTF = dense(config, "up", config.d_ff, ("embed", "mlp"))(x_BTD)
        hidden_BTF = named(config, hidden_BTF, "mlp_up")
        if config.mlp == "swiglu":
            gate_BTF = dense(config, "gate", config.d_ff, ("embed", "mlp"))(x_BTD)
            gate_BTF = named(config, gate_BTF, "mlp_gate")
            hidden_BTF = silu(gate_BTF) * hidden_BTF
        else:
            hidden_BTF = {"gelu": gelu, "relu": nn.relu}[config.mlp](hidden_BTF)
        hidden_BTF = nn.with_logical_constraint(hidden_BTF, ("batch", "length", "activation_mlp"))
        return dense(config, "down", config.d_model, ("mlp", "embed"))(hidden_BTF)


class Layer(nn.Module):
    """One pre-norm decoder layer: x + attention(norm(x)), then x + MLP(norm(x))."""

    config: ModelConfig
    keep: bool = False

    @nn.compact
    def __call__(
        self, x_BTD: Array, inputs: LayerInputs, at: tuple[Array, Array] | None = None
    ) -> tuple[Array, KeyValues | None]:
        config = self.config
        normed_BTD = norm(config, "attention_norm")(x_BTD)
        attended_BTD, kept = Attention(config, self.keep, name="attention")(normed_BTD, inputs, at)
        x_BTD = x_BTD + attended_BTD
        x_BTD = x_BTD + MLP(config, name="mlp")(norm(config, "mlp_norm")(x_BTD))
        return nn.with_logical_constraint(x_BTD, ("batch", "length", "activation_embed")), kept
