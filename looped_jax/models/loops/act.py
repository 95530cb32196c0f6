"""config.loop.gate = act: adaptive computation time for each token, as in the Universal Transformer
(Dehghani et al. 2019, appendix C), after Graves 2016 (arXiv 1603.08983, equations 5 to 12):

    p_t = sigmoid(w h_{t-1} + b),   w zero and b one where training begins.

A token halts in the first loop N in which p_1 + … + p_N > 1 - eps, at the latest in the last one;
its state is copied from there on. What leaves the loops is sum_{t<N} p_t h_t + R h_N with the
remainder R = 1 - sum_{t<N} p_t. It emits N + R so far, the time that config.loop_loss.kind = act
makes short.

Published with config.loop_loss.beta = 0.01, which is not the default. A baseline: looped language
models trained so tend to halt after one loop.
"""

from typing import Any

import jax
import jax.numpy as jnp

from looped_jax.models.layers import Array
from looped_jax.models.loops.base import LoopContext, LoopState
from looped_jax.models.loops.gate import TokenGate

EPS = 0.01


def _others(state: LoopState) -> dict[str, Any]:
    """What other variants carry, arrays [B, T, …]: it halts with its token."""
    return {name: of for name, of in state.extra.items() if name != "act"}


class AdaptiveTime(TokenGate):
    """Halts tokens one by one and mixes their states."""

    bias_at_start = 1.0

    def start(self, state: LoopState, context: LoopContext) -> LoopState:
        """Nothing has halted, nothing is mixed."""
        zero_BT = jnp.zeros(state.x_BTD.shape[:2], jnp.float32)
        fresh = {"sum": zero_BT, "time": zero_BT, "mixed": jnp.zeros_like(state.x_BTD)}
        return state.replace(extra={**state.extra, "act": fresh})

    def enter(self, state: LoopState, context: LoopContext, loop: Array) -> LoopState:
        """Asks the state as the loop before left it."""
        halting_BT = jax.nn.sigmoid(self.logit(state))
        before = state.replace(extra=_others(state))
        asked = {**state.extra["act"], "halting": halting_BT, "before": before}
        return state.replace(extra={**state.extra, "act": asked})

    def leave(self, state: LoopState, context: LoopContext, loop: Array) -> LoopState:
        """Mixes the loop's state in, where the token had not halted."""
        act = state.extra["act"]
        sum_BT, halting_BT = act["sum"], act["halting"]
        runs_BT = sum_BT < 1.0
        halts_BT = sum_BT + halting_BT > 1.0 - EPS
        rest_BT = 1.0 - sum_BT
        weight_BT = jnp.where(runs_BT, jnp.where(halts_BT, rest_BT, halting_BT), 0.0)

        def where_it_runs(new: Array, old: Array) -> Array:
            return jnp.where(runs_BT.reshape(*runs_BT.shape, *(1,) * (new.ndim - 2)), new, old)

        state = jax.tree.map(
            where_it_runs, state.replace(extra=_others(state), entered=None), act["before"]
        )
        # Loops so far and what remains for this one, should it be the token's last.
        after = {
            "sum": jnp.where(runs_BT & halts_BT, 1.0, sum_BT + weight_BT),
            "time": jnp.where(runs_BT, loop + 1.0 + rest_BT, act["time"]),
            "mixed": act["mixed"] + weight_BT[..., None].astype(state.x_BTD.dtype) * state.x_BTD,
        }
        return state.replace(extra={**state.extra, "act": after})

    def emit(self, state: LoopState, loop: Array) -> Array:
        """N + R of each token, float32 [B, T], were this the last loop."""
        time_BT: Array = state.extra["act"]["time"]
        return time_BT

    def finish(self, state: LoopState, context: LoopContext) -> LoopState:
        """The mixture; tokens that have not halted give the last state what remains."""
        act = state.extra["act"]
        rest_BT1 = (1.0 - act["sum"])[..., None].astype(state.x_BTD.dtype)
        return LoopState(act["mixed"] + rest_BT1 * state.x_BTD, _others(state))
