"""config.loop.routing = token_choice: Mixture-of-Recursions in which every token chooses its loops,
once, where the segment begins (Bae et al. 2025, arXiv 2507.10524, and its code,
raymin0223/mixture_of_recursions; how the result is weighed is the code's):

    p = softmax(W h_0),   i = argmax p,   w = p_i;   out = h_0 + w h_i

W [D, L], h_0 the segment's input. Loop j = 0, 1, … < L is run by the tokens with i >= j, which see
each other alone; h_j is the stream at its end, and between loops there is no gate.

It asks each token alone, so training and inference have one rule. What is added to the loss of a
row, f_j being the share of its tokens that chose j and P_j their mean p_j:
b L sum_j f_j P_j + 1e-5 (mean log^2 sum exp W h_0), b = config.loop.balance_weight. (f and P are of
a micro-batch in the code that was read; of a row, the loss does not depend on how a batch is
divided.)
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from looped_jax.errors import UserError
from looped_jax.models.config import ModelConfig
from looped_jax.models.execution import partitioned
from looped_jax.models.layers import Array
from looped_jax.models.loops.base import LoopContext, LoopState
from looped_jax.models.loops.routing import ROUTER_INIT, Routing, row_mean

Z_WEIGHT = 1e-5


class TokenChoice(Routing):
    """One router, by which tokens choose a depth."""

    @nn.compact
    def start(self, state: LoopState, context: LoopContext) -> LoopState:
        """Every token chooses. UserError if there are not the loops that it chooses among."""
        loops = context.trained
        if context.loops != loops:
            raise UserError(
                f"loops={context.loops}: with config.loop.routing='token_choice' tokens choose "
                f"among the {loops} loops of the plan"
            )
        init = partitioned(ROUTER_INIT, "embed", None)
        weight_DL = self.param("weight", init, (self.config.d_model, loops))
        z_BTL = state.x_BTD.astype(jnp.float32) @ weight_DL
        p_BTL = jax.nn.softmax(z_BTL)
        depth_BT, weight_BT = jnp.argmax(p_BTL, axis=-1), jnp.max(p_BTL, axis=-1)
        token_BT = context.token_BT

        def mean_BL(of_loop_BTL: Array) -> Array:
            return jax.vmap(row_mean, (2, None), 1)(of_loop_BTL, token_BT)

        chosen_BTL = depth_BT[..., None] == jnp.arange(loops)
        log_sum_BT = jax.nn.logsumexp(z_BTL, axis=-1)
        of_size_B = Z_WEIGHT * row_mean(log_sum_BT**2, token_BT)
        balance_BL = self.config.balance_weight * loops * mean_BL(chosen_BTL) * mean_BL(p_BTL)
        said_BL = {
            "loss": balance_BL + of_size_B[:, None] / loops,
            "share": mean_BL(depth_BT[..., None] >= jnp.arange(loops)),
        }
        return self.put(state, depth=depth_BT, weight=weight_BT, said=said_BL)

    def enter(self, state: LoopState, context: LoopContext, loop: Array) -> LoopState:
        """Remembers the stream of those that are done."""
        routing = state.extra["routing"]
        active_BT = routing["depth"] >= loop
        return self.put(state, **routing, active=active_BT, before=state.x_BTD)

    def leave(self, state: LoopState, context: LoopContext, loop: Array) -> LoopState:
        """h_0 + w h where this was a token's last loop."""
        routing, x_BTD = dict(state.extra["routing"]), state.x_BTD
        active_BT, before_BTD = routing.pop("active"), routing.pop("before")
        weight_BT1 = routing["weight"][..., None].astype(x_BTD.dtype)
        ends_BT1 = (routing["depth"] == loop)[..., None]
        x_BTD = jnp.where(ends_BT1, context.x0_BTD + weight_BT1 * x_BTD, x_BTD)
        x_BTD = jnp.where(active_BT[..., None], x_BTD, before_BTD)
        return self.put(state.replace(x_BTD=x_BTD), **routing)

    def active(self, state: LoopState) -> Array:
        """Those that chose at least this loop."""
        return state.extra["routing"]["active"]

    def emit(self, state: LoopState, loop: Array) -> dict[str, Array]:
        """This loop's part of the loss, and the share of a row's tokens in it, float32 [B] each."""
        said_BL = state.extra["routing"]["said"]
        return {name: jnp.take(of_BL, loop, axis=1) for name, of_BL in said_BL.items()}

    @classmethod
    def pass_flops(cls, config: ModelConfig) -> int:
        """W h_0, of all segments that are looped as of the one with the most loops."""
        return 2 * config.d_model * max(segment.loops for segment in config.plan.segments)
