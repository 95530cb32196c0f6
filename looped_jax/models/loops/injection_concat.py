"""config.loop.injection = concat: before every loop a matrix makes one of the stream and the
segment's input:

    h_t = f(A [h_{t-1}; x0]),  A [2D, D] without bias.

Huginn's `linear` adapter (Geiping et al. 2025, arXiv 2502.05171, section 3), with its order and its
start: normal, cut at three standard deviations, of variance 2 / (5 D).
"""

import math

import flax.linen as nn
import jax.numpy as jnp

from looped_jax.models.config import ModelConfig
from looped_jax.models.execution import partitioned
from looped_jax.models.layers import Array
from looped_jax.models.loops.base import LoopContext, LoopState, LoopVariant


class ConcatInput(LoopVariant):
    """A [h; x0] before every loop."""

    def setup(self) -> None:
        """Makes the matrix, which all loops share."""
        width = self.config.d_model
        init = nn.initializers.truncated_normal(math.sqrt(0.4 / width), lower=-3.0, upper=3.0)
        self.kernel = self.param("kernel", partitioned(init, None, "embed"), (2 * width, width))

    def enter(self, state: LoopState, context: LoopContext, loop: Array) -> LoopState:
        """Multiplies."""
        both_BTE = jnp.concatenate([state.x_BTD, context.x0_BTD], axis=-1)
        return state.replace(x_BTD=both_BTE @ self.kernel.astype(self.config.dtype))

    @classmethod
    def loop_flops(cls, config: ModelConfig) -> int:
        """The product."""
        return 2 * 2 * config.d_model * config.d_model
