"""config.loop.gate = linear: a gate says after every loop, for each token, whether to stop there
(Ouro, arXiv 2510.25741; the same in PonderNet, arXiv 2107.05407):

    lambda_t = sigmoid(w h_t + b),    w [D] and b [] shared by all loops, zero where training begins

of the stream h_t at the loop's end. It is emitted as the logit w h_t + b, and changes nothing: what
a loss or an exit makes of the logits of all loops is said by ``exit_log_p``.
"""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from looped_jax.models.config import ModelConfig
from looped_jax.models.execution import partitioned
from looped_jax.models.layers import Array
from looped_jax.models.loops.base import LoopState, LoopVariant


class TokenGate(LoopVariant):
    """w h + b of each token's stream h."""

    bias_at_start: ClassVar[float] = 0.0

    def setup(self) -> None:
        """Its parameters; neither is a kernel: they are in no optimizer's group of matrices."""
        zeros, bias = nn.initializers.zeros_init(), nn.initializers.constant(self.bias_at_start)
        self.weight = self.param("weight", partitioned(zeros, "embed"), (self.config.d_model,))
        self.bias = self.param("bias", partitioned(bias), ())

    def logit(self, state: LoopState) -> Array:
        """w h + b, float32 [B, T]."""
        logit_BT: Array = state.x_BTD.astype(jnp.float32) @ self.weight + self.bias
        return logit_BT

    @classmethod
    def loop_flops(cls, config: ModelConfig) -> int:
        """A product with one vector."""
        return 2 * config.d_model


class LinearGate(TokenGate):
    """Emits w h + b, float32 [B, T]."""

    def emit(self, state: LoopState, loop: Array) -> Array:
        """The logit of each token."""
        return self.logit(state)


def exit_log_p(logits_L: Array) -> Array:
    """log p_t of stopping after loop t, of the gate's logits [L, …]:

    p_t = lambda_t prod_{j<t} (1 - lambda_j) for t < L, and p_L the rest (Ouro, section 3; the gate
    of the last loop decides nothing). Exact where a gate is sure: computed from log-sigmoids.
    """
    stop_L, go_on_L = jax.nn.log_sigmoid(logits_L), jax.nn.log_sigmoid(-logits_L)
    survived_L = jnp.cumsum(go_on_L, axis=0) - go_on_L
    return jnp.concatenate([stop_L[:-1] + survived_L[:-1], survived_L[-1:]])


def exit_entropy(log_p_L: Array) -> Array:
    """-sum_t p_t log p_t, […], of ``exit_log_p``."""
    return -jnp.sum(jnp.exp(log_p_L) * log_p_L, axis=0)
