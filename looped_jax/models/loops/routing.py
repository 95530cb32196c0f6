"""What the kinds of config.loop.routing share: Mixture-of-Recursions, where tokens are not in all
loops (Bae et al. 2025, arXiv 2507.10524)."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from looped_jax.models.config import ModelConfig
from looped_jax.models.layers import Array
from looped_jax.models.loops.base import LoopState, LoopVariant

ROUTER_INIT = nn.initializers.normal(0.02)


def row_mean(values_BT: Array, of_BT: Array) -> Array:
    """float32 [B]: the mean over the tokens of each row where ``of_BT`` is True; 0 if none is."""
    count_B = jnp.maximum(jnp.sum(of_BT, axis=1), 1)
    return jnp.sum(jnp.where(of_BT, values_BT.astype(jnp.float32), 0.0), axis=1) / count_B


class Routing(LoopVariant):
    """Says in which loops a token is, and what it learns that by."""

    adds_loss = True

    def put(self, state: LoopState, **routing: Any) -> LoopState:
        """The state with this of the routing to be carried."""
        return state.replace(extra={**state.extra, "routing": routing})

    @classmethod
    def row_loss(cls, config: ModelConfig, emitted: Any) -> tuple[Array, dict[str, Array]]:
        """The sum of what loops emitted as `loss`; reported is also, of each loop, the rest."""
        loss_B = jnp.sum(emitted["loss"], axis=0)
        reported = {
            f"loop_{t + 1}/{name}": value_B
            for name, of_LB in emitted.items()
            if name != "loss"
            for t, value_B in enumerate(of_LB)
        }
        return loss_B, {"loss": loss_B, **reported}
