"""The mathematics of a decoder layer: normalisation, rotary positions, attention, MLP, the layer.

Shapes in names: B batch, T query length, S key length, D model, H heads, G key-value heads,
K head size, F MLP width, V vocabulary. Parameters are float32; `dtype` is the compute type. How it
is laid out and executed: models/execution.py.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from looped_jax.models.attention import attend_to_cache, attention_weights
from looped_jax.models.attention_kernels import attention
from looped_jax.models.config import ModelConfig
from looped_jax.models.execution import dense, partitioned, placed, show, storing_derivative

Array = jax.Array
Rotation = tuple[Array, Array] | None


class KeyValues(struct.PyTreeNode):
    """Keys (rotated) and values of tokens: in one layer k_BGSK and v_BGSK; with the axes of the
    scans in front, [L, k, B, G, S, K], in a segment. ``used``: where not all tokens are in all
    loops (LoopVariant.active), bool [L, B, S] of a segment, those that are."""

    k: Array
    v: Array
    used: Array | None = None


class LayerInputs(struct.PyTreeNode):
    """What every layer of every loop is given beside the residual stream.

    When decoding: ``cache`` is the whole segment's, [L, k, B, G, S, K], from which a layer takes
    its own part at once (a scan over it would copy each loop's part first, then each layer's);
    ``seen_BS`` tells the places in use. ``extra``: what a kind of loop tells its layers of the
    loop (LoopVariant.layer_inputs), arrays that are broadcast to [B, T, …]. ``kernel``: that of
    attention, where the model's is not for so many tokens. ``one_document``: of a row, with nothing
    but padding after it. ``change``: of the stream before and
    after a layer, the loop's number and the layer's, what stands in the place of the second
    (models/loops/base.py, Intervention).
    """

    rotation: Rotation
    segment_ids_BT: Array | None = None
    positions_BT: Array | None = None
    cache: KeyValues | None = None
    seen_BS: Array | None = None
    extra: dict[str, Any] = struct.field(default_factory=dict)
    kernel: str | None = struct.field(pytree_node=False, default=None)
    one_document: bool = struct.field(pytree_node=False, default=False)
    change: Callable[..., Array] | None = struct.field(pytree_node=False, default=None)


def is_token(segment_ids_BT: Array | None, like_BTD: Array) -> Array:
    """True where a row has a token, bool [B, T]; elsewhere padding, which is of document 0."""
    if segment_ids_BT is None:
        return jnp.ones(like_BTD.shape[:2], bool)
    return segment_ids_BT > 0


def unit(x: Array, eps: float, axis: int | tuple[int, ...] = -1) -> Array:
    """x / sqrt(sum x^2 + eps) over ``axis``: of length 1; computed in float32."""
    wide = x.astype(jnp.float32)
    inverse = jax.lax.rsqrt(jnp.sum(jnp.square(wide), axis=axis, keepdims=True) + eps)
    return (wide * inverse).astype(x.dtype)


def norm(config: ModelConfig, name: str | None) -> Callable[[Array], Array]:
    """The configured normalisation over D; statistics in float32. In a `setup` it is named by the
    attribute, and ``name`` is None. Without parameters it is a function and no module."""
    if config.norm == "none":
        return lambda x_BTD: x_BTD
    if config.norm == "l2":
        return lambda x_BTD: unit(x_BTD, config.norm_eps)
    scale_init = partitioned(nn.initializers.ones_init(), "embed")
    if config.norm != "layernorm":
        return nn.RMSNorm(
            config.norm_eps,
            config.dtype,
            use_scale=config.norm == "rmsnorm",
            scale_init=scale_init,
            name=name,
        )
    bias_init = partitioned(nn.initializers.zeros_init(), "embed")
    return nn.LayerNorm(
        config.norm_eps, config.dtype, scale_init=scale_init, bias_init=bias_init, name=name
    )


def head_norm(config: ModelConfig, name: str) -> Callable[[Array], Array]:
    """With config.qk_norm, RMSNorm over K of each head, with one scale for all heads; statistics in
    float32. (The idea is of Henry et al. 2020, arXiv 2010.04245, there with an L2 norm, which it
    is here where config.norm is l2.)"""
    if not config.qk_norm:
        return lambda x_BTHK: x_BTHK
    if config.norm == "l2":
        return lambda x_BTHK: unit(x_BTHK, config.norm_eps)
    scale_init = partitioned(nn.initializers.ones_init(), "head_dim")
    return nn.RMSNorm(config.norm_eps, config.dtype, scale_init=scale_init, name=name)


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


def _part(array: Array, loop: Array, layer: Array) -> Array:
    """[L, k, …] -> […] in one slice."""
    start = (loop, layer) + (0,) * (array.ndim - 2)
    return jax.lax.dynamic_slice(array, start, (1, 1, *array.shape[2:]))[0, 0]


class Attention(nn.Module):
    """Causal grouped-query attention within segments; softmax in float32.

    With a cache, the tokens attend to what is cached for this loop and layer (``at``) and, each up
    to itself, to each other. ``keep``: whether the keys and values of the tokens given are
    returned too. A tuple in place of ``x_BTD`` is what queries, keys and values are made of.
    """

    config: ModelConfig
    keep: bool = False

    def scaled_query(self, q_BTHK: Array) -> Array:
        """Queries, rotated, as they are compared with keys; a kind of layer may scale them."""
        return q_BTHK

    @nn.compact
    def __call__(
        self, x_BTD: Any, inputs: LayerInputs, at: tuple[Array, Array] | None = None
    ) -> tuple[Array, KeyValues | None]:
        config = self.config
        heads, groups, size = config.num_heads, config.num_kv_heads, config.head_dim
        x_BTD, of_keys_BTD, of_values_BTD = x_BTD if isinstance(x_BTD, tuple) else (x_BTD,) * 3
        q_BTHK = dense(config, "query", (heads, size))(x_BTD)
        k_BTGK = dense(config, "key", (groups, size))(of_keys_BTD)
        v_BTGK = dense(config, "value", (groups, size))(of_values_BTD)
        q_BTHK = head_norm(config, "query_norm")(q_BTHK)
        k_BTGK = head_norm(config, "key_norm")(k_BTGK)
        q_BTHK = self.scaled_query(rope(q_BTHK, inputs.rotation))
        q_BTHK = placed(config, q_BTHK, "query")
        k_BTGK = placed(config, rope(k_BTGK, inputs.rotation), "key")
        v_BTGK = placed(config, v_BTGK, "value")
        if inputs.cache is None:
            # No TPU kernel takes the two tokens of initialisation.
            kernel = "xla" if self.is_initializing() else inputs.kernel or config.attention
            documents = inputs.segment_ids_BT
            out_BTHK = attention(
                *(kernel, q_BTHK, k_BTGK, v_BTGK, documents), one_document=inputs.one_document
            )
            out_BTHK = placed(config, out_BTHK, "attended")
            show(self, "weights", lambda: attention_weights(q_BTHK, k_BTGK, documents))
        else:
            assert at is not None and inputs.seen_BS is not None
            k_BGSK, v_BGSK = (_part(x, *at) for x in (inputs.cache.k, inputs.cache.v))
            out_BTHK = attend_to_cache(*(q_BTHK, k_BTGK, v_BTGK, k_BGSK, v_BGSK), inputs.seen_BS)
        out_BTHK = self.gated(out_BTHK, x_BTD)
        out_BTD = dense(config, "output", config.d_model, contracted=2)(out_BTHK)
        kept = KeyValues(k_BTGK.swapaxes(1, 2), v_BTGK.swapaxes(1, 2)) if self.keep else None
        return out_BTD, kept

    def gated(self, out_BTHK: Array, x_BTD: Array) -> Array:
        """What heads give, with config.attention_gate times sigmoid(W x), x being what attention is
        given, channel by channel (as HRM-Text has it, read in transformers' `hrm_text`)."""
        config = self.config
        if not config.attention_gate:
            return out_BTHK
        gate_BTHK = dense(config, "out_gate", (config.num_heads, config.head_dim))(x_BTD)
        return out_BTHK * jax.nn.sigmoid(placed(config, gate_BTHK, "out_gate"))


gelu = storing_derivative(nn.gelu)
silu = storing_derivative(nn.silu)


class MLP(nn.Module):
    """GELU (tanh form) or ReLU MLP, or SwiGLU (three matrices)."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x_BTD: Array) -> Array:
        config = self.config
        hidden_BTF = placed(config, dense(config, "up", config.d_ff)(x_BTD), "mlp_up")
        if config.mlp == "swiglu":
            gate_BTF = placed(config, dense(config, "gate", config.d_ff)(x_BTD), "mlp_gate")
            hidden_BTF = silu(gate_BTF) * hidden_BTF
        else:
            hidden_BTF = {"gelu": gelu, "relu": nn.relu}[config.mlp](hidden_BTF)
        return dense(config, "down", config.d_model)(placed(config, hidden_BTF, "mlp"))


class Layer(nn.Module):
    """One decoder layer: x + attention(norm(x)), then x + MLP(norm(x)); config.norms adds norms.
    Other kinds, of config.layer: models/layer_kinds.py.

    A kind of loop may have a kind of its own (LoopVariant.layer_class), which replaces `reading`,
    `entering` and `leaving`.
    """

    config: ModelConfig
    keep: bool = False

    def reading(self, block: str, x_BTD: Array, inputs: LayerInputs) -> Any:
        """What the block's norm is given; for `attention` it may be a tuple, see Attention."""
        return x_BTD

    def entering(self, block: str, normed_BTD: Array, inputs: LayerInputs) -> Array:
        """What the block, `attention` or `mlp`, is given."""
        return normed_BTD

    def leaving(self, block: str, branch_BTD: Array, inputs: LayerInputs) -> Array:
        """What is added to the stream."""
        return branch_BTD

    @nn.compact
    def __call__(
        self, x_BTD: Array, inputs: LayerInputs, at: tuple[Array, Array] | None = None
    ) -> tuple[Array, KeyValues | None]:
        config = self.config
        read = self.reading("attention", x_BTD, inputs)
        normed_BTD = jax.tree.map(norm(config, "attention_norm"), read)
        normed_BTD = self.entering("attention", normed_BTD, inputs)
        attended_BTD, kept = Attention(config, self.keep, name="attention")(normed_BTD, inputs, at)
        x_BTD = self.joined("attention", x_BTD, attended_BTD, inputs)
        read = self.reading("mlp", x_BTD, inputs)
        normed_BTD = self.entering("mlp", norm(config, "mlp_norm")(read), inputs)
        x_BTD = self.joined("mlp", x_BTD, MLP(config, name="mlp")(normed_BTD), inputs)
        return placed(config, x_BTD, "stream"), kept

    def joined(self, block: str, x_BTD: Array, branch_BTD: Array, inputs: LayerInputs) -> Array:
        """The stream after a block: x + branch; with config.norms = branch, x + norm(branch) (Ouro,
        arXiv 2510.25741); with stream, norm(x + branch) (Huginn, arXiv 2502.05171)."""
        config = self.config
        if config.norms == "branch":
            branch_BTD = norm(config, f"{block}_out_norm")(branch_BTD)
        x_BTD = x_BTD + self.leaving(block, branch_BTD, inputs)
        if config.norms == "stream":
            x_BTD = norm(config, f"{block}_out_norm")(x_BTD)
        return x_BTD
