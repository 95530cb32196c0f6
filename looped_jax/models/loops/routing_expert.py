"""config.loop.routing = expert_choice: Mixture-of-Recursions in which every loop chooses its tokens
(Bae et al. 2025, arXiv 2507.10524, and its code, raymin0223/mixture_of_recursions):

    z = w[r] h,   g = alpha sigmoid(z),   h <- h + g f(h) for the tokens that are chosen,

w [L, D], alpha = 0.1, f(h) the stream at the end of loop r = 0, 1, … < L, with attention among the
chosen tokens alone. The others stay as they are and are in no later loop.

Training: of the tokens in loop r - 1 those with the k_r highest z are chosen, k_r = max(1, int(c_r
T)), c_r = (L - r) / L, T places of a row: so loop 0 takes all. Padding takes only places that no
other token wants, and counts in no mean. The routers also learn to tell the chosen: w
BCEWithLogits(z, chosen?), w = config.loop.selection_weight, a mean over a row's candidates, summed
over loops.

Such a choice looks at later tokens. So elsewhere (evaluating, scoring, generating) a token goes on
where sigmoid(z) > 1/2, which asks it alone: the paper's rule; the code read has no inference.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from looped_jax.models.config import ModelConfig
from looped_jax.models.layers import Array
from looped_jax.models.loops.base import LoopContext, LoopState
from looped_jax.models.loops.routing import ROUTER_INIT, Routing, row_mean

ALPHA = 0.1


def highest(z_BT: Array, among_BT: Array, token_BT: Array, count: Array | int) -> Array:
    """The ``count`` tokens of each row, bool [B, T], that come first: those ``among`` before
    others, tokens before padding, then by z; of equal ones the earlier."""
    order_BT = jnp.lexsort((-z_BT, ~token_BT, ~among_BT), axis=-1)
    return jnp.argsort(order_BT, axis=-1) < count


class ExpertChoice(Routing):
    """A router for each loop, which chooses tokens."""

    def start(self, state: LoopState, context: LoopContext) -> LoopState:
        """All tokens could be chosen."""
        nothing_B = jnp.zeros(len(state.x_BTD), jnp.float32)
        said = dict.fromkeys(("loss", "share", "accuracy"), nothing_B)
        return self.put(state, active=jnp.ones(state.x_BTD.shape[:2], bool), said=said)

    @nn.compact
    def enter(self, state: LoopState, context: LoopContext, loop: Array) -> LoopState:
        """Chooses."""
        weight_D = self.per_loop("weight", ROUTER_INIT, (self.config.d_model,), "embed")
        z_BT = state.x_BTD.astype(jnp.float32) @ weight_D
        candidate_BT, token_BT = state.extra["routing"]["active"], context.token_BT
        goes_on_BT = z_BT > 0
        active_BT = candidate_BT & goes_on_BT
        if context.train:
            count = self.places(loop, context.trained, z_BT.shape[1])
            z_fixed_BT = jax.lax.stop_gradient(z_BT)
            active_BT = highest(z_fixed_BT, candidate_BT, token_BT, count)
        of_BT = candidate_BT & token_BT
        xent_BT = jax.nn.softplus(z_BT) - z_BT * active_BT
        said = {
            "loss": self.config.selection_weight * row_mean(xent_BT, of_BT),
            "share": row_mean(active_BT, token_BT),
            "accuracy": row_mean(goes_on_BT == active_BT, of_BT),
        }
        gate_BT = ALPHA * jax.nn.sigmoid(z_BT)
        return self.put(state, active=active_BT, said=said, gate=gate_BT, before=state.x_BTD)

    def leave(self, state: LoopState, context: LoopContext, loop: Array) -> LoopState:
        """Adds what the loop made to the chosen."""
        routing = state.extra["routing"]
        active_BT1, gate_BT1 = routing["active"][..., None], routing["gate"][..., None]
        before_BTD, gate_BT1 = routing["before"], gate_BT1.astype(state.x_BTD.dtype)
        x_BTD = jnp.where(active_BT1, before_BTD + gate_BT1 * state.x_BTD, before_BTD)
        state = state.replace(x_BTD=x_BTD)
        return self.put(state, active=routing["active"], said=routing["said"])

    def active(self, state: LoopState) -> Array:
        """The chosen."""
        return state.extra["routing"]["active"]

    def emit(self, state: LoopState, loop: Array) -> dict[str, Array]:
        """Its loss, the share of a row's tokens that it chose, and of the candidates for which
        sigmoid(z) > 1/2 says the same, float32 [B] each."""
        return state.extra["routing"]["said"]

    @classmethod
    def places(cls, loop: Any, loops: int, length: int) -> Any:
        """k_r; ``loop`` may be data."""
        count = (loops - loop) * length // loops
        return max(1, count) if isinstance(loop, int) else jnp.maximum(1, count)

    @classmethod
    def loop_flops(cls, config: ModelConfig) -> int:
        """A product with one vector."""
        return 2 * config.d_model
