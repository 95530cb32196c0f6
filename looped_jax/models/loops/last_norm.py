"""config.loop.last_norm = every_loop: a norm, shared by all loops, ends each loop, and the next one
begins with what it gives:

    h_t = norm(f(h_{t-1})).

Ouro (Zhu et al. 2025, arXiv 2510.25741): it is the model's last norm as well, so where the plan
ends in a looped segment there is no other.
"""

from typing import ClassVar

from looped_jax.models.layers import Array, norm
from looped_jax.models.loops.base import LoopContext, LoopState, LoopVariant


class NormEveryLoop(LoopVariant):
    """norm(h) after every loop."""

    ends_in_norm: ClassVar[bool] = True

    def setup(self) -> None:
        """Makes the norm."""
        self.norm = norm(self.config, None)

    def leave(self, state: LoopState, context: LoopContext, loop: Array) -> LoopState:
        """Norms."""
        return state.replace(x_BTD=self.norm(state.x_BTD))
