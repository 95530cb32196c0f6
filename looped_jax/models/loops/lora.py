"""config.loop.per_loop = lora: every projection of every layer has, in each loop, a product of two
thin matrices of its own beside the weights that all loops share:

    W x + B_t A_t x,   A_t [rank, in],  B_t [out, rank],  rank = config.loop.lora_rank.

Relaxed Recursive Transformers (Bae et al., arXiv 2410.20672), with its scale alpha / rank = 1. A
begins random, of the size that W has, and B at zero, where the model is the plain loop. At full
rank it can be any untied stack of layers with shared norms and biases. Weight decay and Muon leave
them alone, as their names are not `kernel`: they are AdamW's where the optimizer is Muon.
"""

import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from looped_jax.models.config import ModelConfig
from looped_jax.models.execution import KERNELS
from looped_jax.models.layers import Array, KeyValues, Layer, LayerInputs
from looped_jax.models.loops.base import LoopVariant, per_loop


def normal_over_rank(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    """An initialiser for A, stored [in …, rank]: of variance 1 / in."""
    initializer = nn.initializers.lecun_normal()
    return initializer(key, (math.prod(shape[:-1]), shape[-1]), dtype).reshape(shape)


class LoraLayer(Layer):
    """A layer whose projections add B A x."""

    @nn.compact
    def __call__(
        self, x_BTD: Array, inputs: LayerInputs, at: tuple[Array, Array] | None = None
    ) -> tuple[Array, KeyValues | None]:
        """The layer, in which every call of a projection goes through `adapted`."""
        rank = self.config.lora_rank

        def adapted(project: Any, args: Any, kwargs: Any, of: nn.module.InterceptorContext) -> Any:
            module, out = of.module, project(*args, **kwargs)
            if not isinstance(module, nn.DenseGeneral) or of.method_name != "__call__":
                return out
            (x,), dtype, axes = args, module.dtype, KERNELS[str(module.name)]
            contracted = x.ndim - 2  # All but B and T.
            a_shape, b_shape = (*x.shape[2:], rank), (rank, *out.shape[2:])
            a_axes, b_axes = axes[:contracted], axes[contracted:]
            a = per_loop(module, "lora_a", normal_over_rank, a_shape, *a_axes, None)
            b = per_loop(module, "lora_b", nn.initializers.zeros, b_shape, None, *b_axes)
            x_BTR = jnp.tensordot(x, a.astype(dtype), axes=contracted)
            return out + jnp.tensordot(x_BTR, b.astype(dtype), axes=1)

        with nn.intercept_methods(adapted):
            return super().__call__(x_BTD, inputs, at)


class LoopLora(LoopVariant):
    """The plain loop, through such layers."""

    layer_class = LoraLayer

    @classmethod
    def layer_flops(cls, config: ModelConfig) -> int:
        """A x and B A x of every projection."""
        heads, groups = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        sizes = [config.d_model + heads] * 2 + [config.d_model + groups] * 2
        sizes += [config.d_model + heads] if config.attention_gate else []
        sizes += [config.d_model + config.d_ff] * (3 if config.mlp == "swiglu" else 2)
        return 2 * config.lora_rank * sum(sizes)
