"""config.loop.injection = add: the segment's input is added to the stream before every loop, the
first one too:

    h_t = f(h_{t-1} + x0),  h_0 = x0.

It is Huginn's injection `add` (Geiping et al. 2025, arXiv 2502.05171, section 3), with the input
as the state to begin with. It has no parameters.
"""

from looped_jax.models.layers import Array
from looped_jax.models.loops.base import LoopContext, LoopState, LoopVariant


class AddInput(LoopVariant):
    """h + x0 before every loop."""

    def enter(self, state: LoopState, context: LoopContext, loop: Array) -> LoopState:
        """Adds x0."""
        return state.replace(x_BTD=state.x_BTD + context.x0_BTD)
