"""config.loop.per_loop = step: how far each loop goes from the stream that enters its layers
towards what these make of it, channel by channel:

    h <- h + a_t (f(h) - h),    a_t [D], 1 where training begins: the plain loop.

A model that was trained without loops keeps its function with a_1 = 1 and a_t = 0 for t > 1, which
is how `looped_jax.retrofit` begins. The idea is that of arXiv 2608.11233 and of LoopUS (arXiv
2605.11011), second-hand: neither's code was read. With equal a_t below 1 a loop is a damped
iteration of f.
"""

import flax.linen as nn

from looped_jax.models.layers import Array
from looped_jax.models.loops.base import LoopContext, LoopState, LoopVariant


class LoopStep(LoopVariant):
    """h + a_t (f(h) - h)."""

    def enter(self, state: LoopState, context: LoopContext, loop: Array) -> LoopState:
        """Keeps the stream that enters the layers."""
        return state.replace(extra={**state.extra, "entered": state.x_BTD})

    @nn.compact
    def leave(self, state: LoopState, context: LoopContext, loop: Array) -> LoopState:
        """Goes a part of the way."""
        size_D = self.per_loop("size", nn.initializers.ones, (self.config.d_model,), "embed")
        extra = dict(state.extra)
        before_BTD = extra.pop("entered")
        step_BTD = size_D.astype(state.x_BTD.dtype) * (state.x_BTD - before_BTD)
        return state.replace(x_BTD=before_BTD + step_BTD, extra=extra)
