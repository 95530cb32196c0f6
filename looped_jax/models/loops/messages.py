"""config.loop.messages = blocks: every loop starts again from the segment's input, and its layers
are told what the loop before has made of it. With R(x) = x / sqrt(mean x^2 + eps), of each token,

    M = R of the loop before's streams behind every config.message_block layers, and at its end
    m = sum_i softmax_i(a . M_i / sqrt(D)) M_i,   a learned by each layer for each of its inputs:
        what queries, keys, values and the MLP are made of; zero where training begins
    u <- (1 - tanh(W_f z)) u + tanh(W_m z) m,   z = W [R(u); R(m)], of message_rank,

before the layer's norm, from the second loop on. The loop of Thinking Machines' Inkling-2, by its
code (transformers 5.24, models/inkling2_loop; its experts and its attention over blocks in place of
the residual stream are not here). Gates begin at about 0.2, which is ours.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from looped_jax.models.config import ModelConfig
from looped_jax.models.execution import partitioned
from looped_jax.models.layers import Array, Layer, LayerInputs, unit
from looped_jax.models.loops.base import LoopContext, LoopState, LoopVariant

READERS = {"attention": ("query", "key", "value"), "mlp": ("mlp",)}
DOWN, GATES = (nn.initializers.variance_scaling(x, "fan_in", "normal") for x in (1.0, 0.04))


def scaled(x_D: Array, eps: float) -> Array:
    """R(x), float32."""
    return unit(x_D.astype(jnp.float32), eps * x_D.shape[-1]) * x_D.shape[-1] ** 0.5


class MessageLayer(Layer):
    """A layer whose blocks read the stream and a message."""

    def reading(self, block: str, x_BTD: Array, inputs: LayerInputs) -> Any:
        """The stream, from the second loop on with each reader's message."""
        told = (self.told(reader, x_BTD, inputs) for reader in READERS[block])
        read = tuple(jnp.where(inputs.extra["later"], of_BTD, x_BTD) for of_BTD in told)
        return read if block == "attention" else read[0]

    def told(self, reader: str, x_BTD: Array, inputs: LayerInputs) -> Array:
        """u of one of the readers."""
        config, width, said_BTND = self.config, self.config.d_model, inputs.extra["messages"]

        def linear(name: str, width: int, init: Any, *axes: str | None) -> nn.Dense:
            init, name = partitioned(init, *axes), f"{reader}_{name}"
            return nn.Dense(width, False, config.dtype, kernel_init=init, name=name)

        zeros = partitioned(nn.initializers.zeros_init(), "embed")
        asked_D = self.param(f"{reader}_asks", zeros, (width,)) * width**-0.5
        share_BTN1 = jax.nn.softmax(said_BTND @ asked_D)[..., None]
        message_BTD = jnp.sum(share_BTN1 * said_BTND, axis=2)
        both = [scaled(of, config.norm_eps).astype(config.dtype) for of in (x_BTD, message_BTD)]
        z_BTR = linear("down", config.message_rank, DOWN, "embed", None)(jnp.concatenate(both, -1))
        gates = [linear(gate, width, GATES, None, "embed")(z_BTR) for gate in ("forget", "take")]
        forget_BTD, take_BTD = map(jnp.tanh, gates)
        return (1 - forget_BTD) * x_BTD + take_BTD * message_BTD.astype(config.dtype)


class BlockMessages(LoopVariant):
    """Streams of one loop for the next one."""

    layer_class = MessageLayer
    hears_layers = True

    def start(self, state: LoopState, context: LoopContext) -> LoopState:
        """Nothing has been said."""
        count = len(range(0, context.layers, self.config.message_block))
        said = [jnp.zeros_like(state.x_BTD)] * count
        return state.replace(extra={**state.extra, "messages": jnp.stack(said, axis=2)})

    def enter(self, state: LoopState, context: LoopContext, loop: Array) -> LoopState:
        """Starts again."""
        return state.replace(x_BTD=context.x0_BTD)

    def layer_inputs(
        self, inputs: LayerInputs, state: LoopState, context: LoopContext, loop: Array
    ) -> LayerInputs:
        """M, and whether it is of a loop."""
        number_B = jnp.reshape(loop, 1) if context.counts is None else context.counts.number_B(loop)
        said_BTND = scaled(state.extra["messages"], self.config.norm_eps)
        later_B11 = (number_B > 0)[:, None, None]
        return inputs.replace(extra={**inputs.extra, "messages": said_BTND, "later": later_B11})

    def leave(self, state: LoopState, context: LoopContext, loop: Array) -> LoopState:
        """Says what the blocks and the loop made."""
        assert state.entered is not None
        block = self.config.message_block
        said = [*state.entered[block::block], state.x_BTD]
        return state.replace(extra={**state.extra, "messages": jnp.stack(said, axis=2)})

    @classmethod
    def layer_flops(cls, config: ModelConfig) -> int:
        """Of each of four readers W, W_f and W_m; a . M and the sum over M."""
        layers = max(config.plan.segments[i].layers for i in config.plan.looped)
        said = len(range(0, layers, config.message_block))
        return 4 * (2 * config.message_rank * 4 * config.d_model + 2 * 2 * said * config.d_model)
