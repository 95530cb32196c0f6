"""config.loop.per_loop = embedding: a learned vector per loop, added to the stream before it:

    h_t = f(h_{t-1} + E[t]),  E [L, D], zero at the start of training.

The depth embedding of the Universal Transformer (Dehghani et al. 2019, section 2.1), learned in
place of a sinusoid. At zero the model is the plain loop.
"""

import flax.linen as nn

from looped_jax.models.layers import Array
from looped_jax.models.loops.base import LoopContext, LoopState, LoopVariant


class LoopEmbedding(LoopVariant):
    """h + E[loop] before every loop."""

    @nn.compact
    def enter(self, state: LoopState, context: LoopContext, loop: Array) -> LoopState:
        """Adds the loop's vector."""
        config = self.config
        own_D = self.per_loop("vector", nn.initializers.zeros_init(), (config.d_model,), "embed")
        x_BTD = state.x_BTD + own_D.astype(config.dtype)
        return state.replace(x_BTD=x_BTD)
