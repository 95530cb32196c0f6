"""config.loop.lanes = hyperloop: N streams S go from loop to loop; what each token reads of them,
writes to them and keeps of them follows from the token's streams:

    z = RMSNorm(S as one vector),  read, write, keep = sigma(a z W + b), 2 sigma(a z W + b),
    sigma(a z W + b), each [N] with a, W [ND, N], b [N] of its own,
    S_n <- keep_n S_n + write_n (f(sum_m read_m S_m) + e),   e [D],   N = STREAMS,

all parameters per loop, and at the end the mean of the streams. Hyperloop (arXiv 2604.21254), whose
text says nothing of where training begins. That is ours: near the plain loop. All streams are the
segment's input; a = 0.01, as in other hyper-connections, and W random, so that streams come to
differ; b such that a stream reads 1 / N, keeps KEPT and has 1 - KEPT written; e = 0. An injection
enters what was read.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from looped_jax.models.config import ModelConfig
from looped_jax.models.layers import Array
from looped_jax.models.loops.base import LoopContext, LoopState, LoopVariant
from looped_jax.models.loops.lanes_hyper import copies

STREAMS = 4
KEPT = 0.02


def logit(share: float) -> float:
    """What sigma makes this share of."""
    return math.log(share / (1 - share))


# sigma, or 2 sigma, of it is what each begins with.
BIASES = {"read": logit(1 / STREAMS), "write": logit((1 - KEPT) / 2), "keep": logit(KEPT)}


class Hyperloop(LoopVariant):
    """Reads from streams before the layers, writes to them after."""

    def start(self, state: LoopState, context: LoopContext) -> LoopState:
        """All streams are what the segment begins with."""
        return state.replace(extra={**state.extra, "lanes": copies(state.x_BTD, STREAMS)})

    @nn.compact
    def enter(self, state: LoopState, context: LoopContext, loop: Array) -> LoopState:
        """Reads, and remembers what `leave` will do."""
        config, init, width = self.config, nn.initializers, STREAMS * self.config.d_model
        lanes_BTND = state.extra["lanes"]
        norm = nn.RMSNorm(config.norm_eps, config.dtype, use_scale=False)
        z_BTE = norm(lanes_BTND.reshape(*lanes_BTND.shape[:2], width))

        def share(name: str) -> Array:
            weights_EN = self.per_loop(name, init.lecun_normal(), (width, STREAMS), None, None)
            factor = self.per_loop(f"{name}_factor", init.constant(0.01), ())
            bias_N = self.per_loop(f"{name}_bias", init.constant(BIASES[name]), (STREAMS,), None)
            product_BTN = (z_BTE @ weights_EN.astype(config.dtype)).astype(jnp.float32)
            share_BTN = jax.nn.sigmoid(factor * product_BTN + bias_N)
            return share_BTN.astype(config.dtype)[..., None]

        own_D = self.per_loop("vector", init.zeros, (config.d_model,), "embed")
        later = {"write": 2 * share("write"), "keep": share("keep")}
        later["vector"] = own_D.astype(config.dtype)
        x_BTD = jnp.sum(share("read") * lanes_BTND, axis=2)
        return state.replace(x_BTD=x_BTD, extra={**state.extra, "later": later})

    def leave(self, state: LoopState, context: LoopContext, loop: Array) -> LoopState:
        """Writes; the stream is the mean."""
        extra = dict(state.extra)
        later = extra.pop("later")
        written_BT1D = (state.x_BTD + later["vector"])[:, :, None]
        lanes_BTND = later["keep"] * extra["lanes"] + later["write"] * written_BT1D
        extra["lanes"] = lanes_BTND
        return state.replace(x_BTD=jnp.mean(lanes_BTND, axis=2), extra=extra)

    @classmethod
    def loop_flops(cls, config: ModelConfig) -> int:
        """z W, three times."""
        return 3 * 2 * STREAMS**2 * config.d_model
