"""config.loop.state: a looped segment begins with noise or zeros, not with its input, which has to
be injected then.

Noise is Huginn's `like-init` (Geiping et al. 2025, arXiv 2502.05171, and its code): normal, cut at
three standard deviations, of variance 2/5 for each entry of the stream. It is drawn anew in every
training step, for each row and position. Where there is no key to draw from (evaluating,
generating) it follows from the position alone, so that decoding sees what the full pass saw.
"""

import math

import jax
import jax.numpy as jnp

from looped_jax.models.layers import Array
from looped_jax.models.loops.base import LoopContext, LoopState, LoopVariant

DEVIATION = math.sqrt(0.4)


def noise(key: Array, positions_BT: Array, width: int, by_row: bool) -> Array:
    """float32 [B, T, D] that follows from key and position and, with ``by_row``, the row."""

    def one(row: Array, position: Array) -> Array:
        own = jax.random.fold_in(jax.random.fold_in(key, row), position)
        return DEVIATION * jax.random.truncated_normal(own, -3.0, 3.0, (width,))

    rows_B1 = jnp.arange(len(positions_BT))[:, None] * by_row
    return jnp.vectorize(one, signature="(),()->(d)")(rows_B1, positions_BT)


class NoiseState(LoopVariant):
    """h_0 is noise."""

    def start(self, state: LoopState, context: LoopContext) -> LoopState:
        """Draws."""
        drawn = self.has_rng("loop")
        key = self.make_rng("loop") if drawn else jax.random.key(0)
        positions_BT = context.inputs.positions_BT
        assert positions_BT is not None
        x_BTD = noise(key, positions_BT, self.config.d_model, drawn)
        return state.replace(x_BTD=x_BTD.astype(self.config.dtype))


class ZeroState(LoopVariant):
    """h_0 = 0."""

    def start(self, state: LoopState, context: LoopContext) -> LoopState:
        """Forgets the input."""
        return state.replace(x_BTD=jnp.zeros_like(context.x0_BTD))
