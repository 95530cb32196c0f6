"""config.loop.injection = unit_add: before every loop, the first one too, the stream at length 1
and the segment's input at length 1 are added:

    h_t = f(U(h_{t-1}) + U(x0)),  h_0 = x0,  U(x) = x / sqrt(sum x^2 + eps).

The loop of NVIDIA's Dory, by its code (transformers 5.24, models/dory). It has no parameters, and
is made for layers whose stream has length 1 too (config.model.layer = ngpt).
"""

from looped_jax.models.layers import Array, unit
from looped_jax.models.loops.base import LoopContext, LoopState, LoopVariant


class UnitAddInput(LoopVariant):
    """U(h) + U(x0) before every loop."""

    def prepare(self, context: LoopContext) -> LoopContext:
        """Computes U(x0), the same in every loop."""
        inflow_BTD = unit(context.x0_BTD, self.config.norm_eps)
        return context.replace(extra={**context.extra, "inflow": inflow_BTD})

    def enter(self, state: LoopState, context: LoopContext, loop: Array) -> LoopState:
        """Adds it."""
        x_BTD = unit(state.x_BTD, self.config.norm_eps) + context.extra["inflow"]
        return state.replace(x_BTD=x_BTD)
