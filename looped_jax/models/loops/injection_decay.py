"""config.loop.injection = decay: before every loop the stream decays and the segment's normed input
flows in; after the last loop a matrix C:

    h_t = f(a * h_{t-1} + delta * (B e)),  e = RMSNorm(x0),
    delta = softplus(b),  a = exp(-delta exp(A)) in (0, 1), entry by entry;  at the end C h_L.

Parcae (arXiv 2604.12946 and its code, sandyresearch/parcae): A = 0, delta = -ln sqrt(1/5), so that
a = sqrt(1/5), B = identity. C begins as the identity too, which is ours. None of them decays by the
optimizer, as no name here is `kernel`.
"""

import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from looped_jax.models.config import ModelConfig
from looped_jax.models.execution import partitioned
from looped_jax.models.layers import Array
from looped_jax.models.loops.base import LoopContext, LoopState, LoopVariant

# softplus of it is -ln sqrt(1/5).
BIAS = math.log(math.expm1(0.5 * math.log(5.0)))


def identity(_: Array, shape: tuple[int, int], dtype: Any = jnp.float32) -> Array:
    """An initialiser."""
    return jnp.eye(shape[0], shape[1], dtype=dtype)


class DecayInput(LoopVariant):
    """a * h + delta * B e before every loop, C h after the last."""

    def setup(self) -> None:
        """Makes the parameters, which all loops share."""
        config, width = self.config, self.config.d_model
        vector = lambda value: partitioned(nn.initializers.constant(value), "embed")  # noqa: E731
        matrix = partitioned(identity, None, "embed")
        self.rate_D = self.param("rate", vector(0.0), (width,))
        self.step_D = self.param("step", vector(BIAS), (width,))
        self.input_DD = self.param("input", matrix, (width, width))
        self.output_DD = self.param("output", matrix, (width, width))
        scale_init = partitioned(nn.initializers.ones_init(), "embed")
        self.norm = nn.RMSNorm(config.norm_eps, config.dtype, scale_init=scale_init)

    def decay_D(self) -> Array:
        """a [D], float32."""
        return jnp.exp(-nn.softplus(self.step_D) * jnp.exp(self.rate_D))

    def prepare(self, context: LoopContext) -> LoopContext:
        """Computes what flows in, the same in every loop."""
        dtype = self.config.dtype
        inflow_BTD = self.norm(context.x0_BTD) @ self.input_DD.astype(dtype)
        inflow_BTD = nn.softplus(self.step_D).astype(dtype) * inflow_BTD
        return context.replace(extra={**context.extra, "inflow": inflow_BTD})

    def enter(self, state: LoopState, context: LoopContext, loop: Array) -> LoopState:
        """Decays, and lets it in."""
        x_BTD = self.decay_D().astype(self.config.dtype) * state.x_BTD + context.extra["inflow"]
        return state.replace(x_BTD=x_BTD)

    def finish(self, state: LoopState, context: LoopContext) -> LoopState:
        """Multiplies by C."""
        output_DD = self.output_DD.astype(self.config.dtype)
        return state.replace(x_BTD=state.x_BTD @ output_DD)

    def watch(self) -> dict[str, Array]:
        """How much of the stream a loop keeps: the least and the largest a, and their mean."""
        a_D = self.decay_D()
        return {"decay_min": jnp.min(a_D), "decay_mean": jnp.mean(a_D), "decay_max": jnp.max(a_D)}

    @classmethod
    def pass_flops(cls, config: ModelConfig) -> int:
        """B and C, once a pass."""
        return 2 * 2 * config.d_model * config.d_model
