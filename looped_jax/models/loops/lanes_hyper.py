"""config.loop.lanes = hyper: N streams go from loop to loop. A loop reads a mixture of them, and
what it makes is written to all; at the end they are summed:

    u = sum_n alpha_{t,n} S_n,   S <- M_t S + beta_t RMSNorm(f(u)),   N = LANES,

with numbers alpha_t [N], M_t [N, N] and beta_t [N] for each loop. Hyper-connection lanes as in the
code of arXiv 2604.21106 (kschwethelm/looped-lm-scaling): all lanes begin at the segment's input,
alpha_t reads lane t mod N, M_t = I, beta_t = 1; the norm's scale is shared by loops. There they
take the place of an injection and are trained with gradients through all loops. Here an injection
enters what was read.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from looped_jax.models.config import ModelConfig
from looped_jax.models.execution import partitioned
from looped_jax.models.layers import Array
from looped_jax.models.loops.base import LoopContext, LoopState, LoopVariant
from looped_jax.models.loops.injection_decay import identity

LANES = 2


def copies(x_BTD: Array, lanes: int) -> Array:
    """As many lanes of the same content, [B, T, N, D]."""
    return jnp.repeat(x_BTD[:, :, None], lanes, axis=2)


class HyperLanes(LoopVariant):
    """Reads from lanes before the layers, writes to them after."""

    def setup(self) -> None:
        """Makes the norm."""
        config = self.config
        scale_init = partitioned(nn.initializers.ones_init(), "embed")
        self.norm = nn.RMSNorm(config.norm_eps, config.dtype, scale_init=scale_init)

    def start(self, state: LoopState, context: LoopContext) -> LoopState:
        """All lanes are what the segment begins with."""
        return state.replace(extra={**state.extra, "lanes": copies(state.x_BTD, LANES)})

    @nn.compact
    def enter(self, state: LoopState, context: LoopContext, loop: Array) -> LoopState:
        """Reads, and remembers what `leave` will do."""

        def in_turn(_: Array, shape: tuple[int], dtype: Any) -> Array:
            return jnp.asarray(jnp.arange(shape[0]) == loop % shape[0], dtype)

        read_N = self.per_loop("read", in_turn, (LANES,), None)
        mix_NN = self.per_loop("mix", identity, (LANES, LANES), None, None)
        write_N = self.per_loop("write", nn.initializers.ones, (LANES,), None)
        read_N, *later = (array.astype(self.config.dtype) for array in (read_N, mix_NN, write_N))
        x_BTD = jnp.einsum("n,btnd->btd", read_N, state.extra["lanes"])
        return state.replace(x_BTD=x_BTD, extra={**state.extra, "later": later})

    def leave(self, state: LoopState, context: LoopContext, loop: Array) -> LoopState:
        """Mixes the lanes and writes; the stream is their sum."""
        extra = dict(state.extra)
        mix_NN, write_N = extra.pop("later")
        lanes_BTND = jnp.einsum("mn,btnd->btmd", mix_NN, extra["lanes"])
        lanes_BTND += write_N[:, None] * self.norm(state.x_BTD)[:, :, None]
        extra["lanes"] = lanes_BTND
        return state.replace(x_BTD=jnp.sum(lanes_BTND, axis=2), extra=extra)

    @classmethod
    def loop_flops(cls, config: ModelConfig) -> int:
        """Reading and mixing."""
        return 2 * (LANES + LANES**2) * config.d_model
