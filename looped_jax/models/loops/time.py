"""config.loop.per_loop = time: every layer is told how far the loops are, and scales what its
blocks are given and what they add by what it learned of that:

    h + g * block(norm(h) * (1 + s)),   [g_attention, g_mlp, s_attention, s_mlp] = W silu(c) + b,
    c = mlp(features(t)) + mlp'(features(dt)),   t = loop / L in [0, 1),  dt = 1 / L.

TMLT (Xu and Sato, arXiv 2410.01405), there with t = loop and without dt; LoopFormer (arXiv
2602.11451 and its code, armenjeddi/loopformer), which is followed here but that the norms keep
their learned scale. All loops share all parameters, so any number of loops has its times. W and b
are zero at the start of training: each loop is the identity then. With loop counts that are data
each row has its own times; a pass along a trajectory (models/loops/trajectory.py) has that one's.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from looped_jax.models.config import ModelConfig
from looped_jax.models.execution import partitioned
from looped_jax.models.layers import Array, KeyValues, Layer, LayerInputs
from looped_jax.models.loops.base import LoopContext, LoopState, LoopVariant

FEATURES = 256
PARTS = ("attention gate", "mlp gate", "attention scale", "mlp scale")


def features(time: Array) -> Array:
    """cos and sin of a time [...] at FEATURES / 2 frequencies from 1 to 1/10000: [..., FEATURES],
    float32."""
    half = FEATURES // 2
    frequency = 10000.0 ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = time[..., None].astype(jnp.float32) * frequency
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


def times(context: LoopContext, loop: Array) -> tuple[Array, Array]:
    """t and dt of a loop, [B or 1, 1]."""
    if context.trajectory is not None:
        return context.trajectory.at(loop)
    number, loops = jnp.reshape(loop, (1, 1)), jnp.asarray(context.loops)
    if context.counts is not None:
        number = context.counts.number_B(loop)[:, None]
        loops = jnp.maximum(context.counts.loops_B, 1)[:, None]
    return number / loops, jnp.broadcast_to(1 / loops, number.shape)


def linear(config: ModelConfig, width: int, init: Any, *axes: str | None) -> nn.Dense:
    """To this width by a kernel of these logical axes, with a bias whatever config.model.bias says,
    which begins at zero."""
    bias_init = partitioned(nn.initializers.zeros, axes[-1])
    kernel_init = partitioned(init, *axes)
    return nn.Dense(width, dtype=config.dtype, kernel_init=kernel_init, bias_init=bias_init)


class TimeLayer(Layer):
    """g * block(norm(h) * (1 + s)) for both blocks."""

    def setup(self) -> None:
        """Makes W and b."""
        config = self.config
        self.modulation = linear(config, 4 * config.d_model, nn.initializers.zeros, "embed", None)

    def __call__(
        self, x_BTD: Array, inputs: LayerInputs, at: tuple[Array, Array] | None = None
    ) -> tuple[Array, KeyValues | None]:
        """The layer with this time's g and s."""
        parts = jnp.split(self.modulation(nn.silu(inputs.extra["time"])), 4, axis=-1)
        extra = dict(zip(PARTS, parts, strict=True))
        return super().__call__(x_BTD, inputs.replace(extra=extra), at)

    def entering(self, block: str, normed_BTD: Array, inputs: LayerInputs) -> Array:
        """Scales."""
        return normed_BTD * (1 + inputs.extra[f"{block} scale"])

    def leaving(self, block: str, branch_BTD: Array, inputs: LayerInputs) -> Array:
        """Gates."""
        return inputs.extra[f"{block} gate"] * branch_BTD


class LoopTime(LoopVariant):
    """c of every loop."""

    layer_class = TimeLayer

    def setup(self) -> None:
        """Makes one MLP for the time and one for the step."""
        start = (self.config, self.config.d_model, nn.initializers.normal(0.02))
        self.time_in, self.step_in = (linear(*start, None, "embed") for _ in range(2))
        self.time_out, self.step_out = (linear(*start, "embed", None) for _ in range(2))

    def layer_inputs(
        self, inputs: LayerInputs, state: LoopState, context: LoopContext, loop: Array
    ) -> LayerInputs:
        """Adds c [B or 1, 1, D]."""
        start, size = times(context, loop)
        time, step = (features(at).astype(self.config.dtype) for at in (start, size))
        of_time = self.time_out(nn.silu(self.time_in(time)))
        of_step = self.step_out(nn.silu(self.step_in(step)))
        return inputs.replace(extra={**inputs.extra, "time": of_time + of_step})
