"""config.model.layer = ngpt: a layer on the unit sphere, whose blocks turn the stream towards what
they make of it, in place of adding that.

With U(x) = x / sqrt(sum x^2 + eps), W without biases, and everything else learned per channel:

    h <- U(h);  h <- h + |r| (U(attention(h)) - h);    h <- U(h);  h <- h + |r'| (U(mlp(h)) - h)
    attention:  q = s^2 rope(U(W h)),  k = rope(U(W h)),  softmax(q k / sqrt(K)) v = o,
                W U(o sigmoid(g^2 (W h)))
    mlp:        W U(silu(u sqrt(D) (W h)) v sqrt(D) (W h))
    logits:     z (W U(h))

r begins at 0.05, s^2 at K, g^2 at sqrt(D), the rest at 1. nGPT (Loshchilov et al. 2024, arXiv
2410.01131, section 2) as NVIDIA's Dory has it, from whose code this was written
(transformers 5.24, models/dory): there with the gate g and U before both output projections. r, s,
g and z are kept as numbers of the size of a matrix's entries, D^-1/2 at the start (nGPT, section
2.5; Dory keeps 0.0177, which for its width of 2560 is nearly that), so that one learning rate suits
both. nGPT also brings the rows of all matrices to length 1 after every update; nothing here does.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from looped_jax.models.config import ModelConfig
from looped_jax.models.execution import dense, partitioned, placed
from looped_jax.models.layers import (
    MLP,
    Array,
    Attention,
    KeyValues,
    Layer,
    LayerInputs,
    silu,
    unit,
)

RATE = 0.05  # At the start: of the way from the stream to what a block makes.


def kept_init(config: ModelConfig, *axes: str) -> Callable[..., Any]:
    """The initialiser of a learned scale of these logical axes, as it is kept: D^-1/2."""
    return partitioned(nn.initializers.constant(config.d_model**-0.5), *axes)


def in_use(config: ModelConfig, kept: Array, start: float) -> Array:
    """A learned scale, which is ``start`` at the start, float32."""
    return kept * (start * config.d_model**0.5)


def scaled_kernel(config: ModelConfig, kernel_VD: Array, kept_V: Array) -> Array:
    """The output projection with z in it, so that the loss and all else that is given a kernel has
    it too."""
    return kernel_VD * in_use(config, kept_V, 1.0)[:, None]


class NgptAttention(Attention):
    """Attention with a scale of queries and a gate of the output. That queries and keys are of
    length 1 is config.qk_norm's work."""

    def scaled_query(self, q_BTHK: Array) -> Array:
        """s^2 q."""
        return q_BTHK * self.squared_scale("query_scale", self.config.head_dim**0.5)

    def gated(self, out_BTHK: Array, x_BTD: Array) -> Array:
        """U(o sigmoid(g^2 (W h))), over all heads."""
        config = self.config
        gate_BTHK = dense(config, "out_gate", (config.num_heads, config.head_dim))(x_BTD)
        gate_BTHK = placed(config, gate_BTHK, "out_gate")
        gate_BTHK = nn.sigmoid(gate_BTHK * self.squared_scale("gate_scale", config.d_model**0.25))
        return unit(out_BTHK * gate_BTHK, config.norm_eps, axis=(-2, -1))

    def squared_scale(self, name: str, start: float) -> Array:
        """The square of a scale of each head's entries [H, K], in the compute type."""
        config = self.config
        shape = (config.num_heads, config.head_dim)
        kept_HK = self.param(name, kept_init(config, "heads", "head_dim"), shape)
        return jnp.square(in_use(config, kept_HK, start)).astype(config.dtype)


class NgptMLP(MLP):
    """SwiGLU with scales of gate and values, of length 1 before the last projection."""

    @nn.compact
    def __call__(self, x_BTD: Array) -> Array:
        """The MLP of a stream of length 1."""
        config, width = self.config, (self.config.d_ff,)
        ones = partitioned(nn.initializers.ones_init(), "mlp")
        of_up_F, of_gate_F = (
            (config.d_model**0.5 * self.param(f"{name}_scale", ones, width)).astype(config.dtype)
            for name in ("up", "gate")
        )
        up_BTF = placed(config, dense(config, "up", config.d_ff)(x_BTD), "mlp_up")
        gate_BTF = placed(config, dense(config, "gate", config.d_ff)(x_BTD), "mlp_gate")
        hidden_BTF = unit(silu(of_gate_F * gate_BTF) * (of_up_F * up_BTF), config.norm_eps)
        return dense(config, "down", config.d_model)(placed(config, hidden_BTF, "mlp"))


class NgptLayer(Layer):
    """h <- U(h), then towards U(attention(h)); again with the MLP."""

    @nn.compact
    def __call__(
        self, x_BTD: Array, inputs: LayerInputs, at: tuple[Array, Array] | None = None
    ) -> tuple[Array, KeyValues | None]:
        """As Layer's."""
        config = self.config
        x_BTD = unit(x_BTD, config.norm_eps)
        attended_BTD, kept = NgptAttention(config, self.keep, name="attention")(x_BTD, inputs, at)
        x_BTD = unit(self.joined("attention", x_BTD, attended_BTD, inputs), config.norm_eps)
        x_BTD = self.joined("mlp", x_BTD, NgptMLP(config, name="mlp")(x_BTD), inputs)
        return placed(config, x_BTD, "stream"), kept

    def joined(self, block: str, x_BTD: Array, branch_BTD: Array, inputs: LayerInputs) -> Array:
        """h + |r| (U(branch) - h)."""
        config = self.config
        kept_D = self.param(f"{block}_rate", kept_init(config, "embed"), (config.d_model,))
        rate_D = jnp.abs(in_use(config, kept_D, RATE)).astype(config.dtype)
        return x_BTD + rate_D * (unit(branch_BTD, config.norm_eps) - x_BTD)
