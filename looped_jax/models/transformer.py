"""LoopedTransformer: embed -> segments of a LoopPlan (models/loops/) -> final norm.

Shapes in names: see models/layers.py.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from looped_jax.models.config import ModelConfig
from looped_jax.models.execution import laid_out, looked_up, partitioned, placed
from looped_jax.models.layers import Array, KeyValues, LayerInputs, norm, rope_angles
from looped_jax.models.loops import chosen
from looped_jax.models.loops.base import (
    Intervention,
    LoopOutput,
    collections,
    init_keys,
    parameters,
)
from looped_jax.models.loops.exits import ExitRule
from looped_jax.models.loops.segment import NOTHING, LoopedSegment, Wanted
from looped_jax.models.ngpt import kept_init, scaled_kernel
from looped_jax.models.output import OutputKernel, vocabulary_logits


class Inference(struct.PyTreeNode):
    """Asks for every layer's keys and values, and for the last token of each row only.

    last_B: that token's place. Later places of a row may hold anything: nothing looks at them.
      None: all tokens are asked for.
    cache: with it the tokens attend to each other and to the places of the cache where
      ``seen_BS`` is True. It is a KeyValues per segment, [C, k, B, G, S, K]: loop t attends
      to slot t mod C. What is kept is [L, …]: each loop of a layer has keys and values of its own.
    """

    last_B: Array | None
    cache: tuple[KeyValues, ...] | None = None
    seen_BS: Array | None = None

    def given(self, inputs: LayerInputs, index: int) -> LayerInputs:
        """The inputs of a segment's layers, with its part of the cache."""
        if self.cache is None:
            return inputs
        return inputs.replace(cache=self.cache[index], seen_BS=self.seen_BS)


class Output(struct.PyTreeNode):
    """What a model returns, always.

    x_BTD: what the output projection is applied to, by models/loss.py in parts of the vocabulary
      or by ``logits`` whole. For inference it is [B, 1, D] where each row's last token is asked.
    kernel_VD: the output projection, float32: as it is stored, or with the scale of each token's
      logit in it (models/ngpt.py).
    segments: what was wanted of the loops of each segment, [L, …].
    depth_BT: with an exit, or where tokens are not in all loops (config.loop.routing, not when
      training), the loops that each token took, int32; for inference [B, 1].
    """

    x_BTD: Array
    kernel_VD: Array
    segments: tuple[LoopOutput, ...]
    depth_BT: Array | None = None


def layer_inputs(
    config: ModelConfig,
    tokens_BT: Array,
    segment_ids_BT: Array | None = None,
    positions_BT: Array | None = None,
) -> LayerInputs:
    """What layers are given of these rows; arguments as LoopedTransformer's."""
    if positions_BT is None:
        positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
    rotation = rope_angles(config, positions_BT)
    return LayerInputs(rotation, segment_ids_BT, positions_BT, one_document=not config.packed)


class LoopedTransformer(nn.Module):
    """Decoder-only transformer whose depth structure is ``config.plan``."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self,
        tokens_BT: Array,
        segment_ids_BT: Array | None = None,
        positions_BT: Array | None = None,
        *,
        loops: int | None = None,
        loops_B: Array | None = None,
        inference: Inference | None = None,
        wanted: Wanted = NOTHING,
        look: Callable[[Array], Any] | None = None,
        exit: ExitRule | None = None,
        sizes_BS: Array | None = None,
        train: bool = False,
        intervention: Intervention | None = None,
    ) -> Output:
        """One pass. `forward`, below, calls it with a tree of parameters.

        Args:
          tokens_BT: int32 token ids.
          segment_ids_BT: int32 document number in a packed row; a token attends only within
            its own document. None: each row is one document.
          positions_BT: int32 position within the document. None: 0, 1, 2, …
          loops: overrides the loop count of looped segments (static).
          loops_B: int32, the same for each row, as data (models/loops/counted.py): gradients go
            through the last config.gradient_loops of them.
          inference: see Inference.
          wanted: what Output.segments has of every loop (static).
          look: of the stream at the end of a looped segment's loop, x_BTD, makes what
            Output.segments has as `looked`.
          exit: when a token stops looping (static, models/loops/exits.py); nothing is wanted then,
            and ``look`` gives what the rule asks for, as `forward` has it.
          sizes_BS: float32, sizes of the steps in place of the loops, as data, 0 behind the last;
            all rows have as many (models/loops/trajectory.py).
          train: whether kinds of loops that have other rules for training go by these (static).
          intervention: what is changed inside looped segments, or all where none is looped; with
            its `order` ``loops`` is how many that has (models/loops/base.py).
        """
        config = self.config
        if exit is not None:
            exit.check(config, loops)
        inputs = layer_inputs(config, tokens_BT, segment_ids_BT, positions_BT)
        embed = nn.Embed(
            config.vocab_size,
            config.d_model,
            dtype=config.dtype,
            embedding_init=partitioned(
                nn.initializers.normal(config.d_model**-0.5), "vocab", "embed"
            ),
            name="embed",
        )
        x_BTD = looked_up(embed(tokens_BT))
        if config.positions == "learned":
            table_TD = self.param(
                "position_embedding",
                partitioned(nn.initializers.normal(config.d_model**-0.5), "positions", "embed"),
                (config.max_length, config.d_model),
            )
            x_BTD = x_BTD + table_TD.astype(config.dtype)[inputs.positions_BT]
        # As in Vaswani et al. 2017, section 3.4: the residual stream starts at unit scale, or what
        # the first pass adds would bury the token, which a looped block must still read later;
        # the logits of a tied output are of unit scale too.
        x_BTD = x_BTD * jnp.asarray(config.d_model**0.5, config.dtype)
        x_BTD = placed(config, x_BTD, "stream")

        wanted = dataclasses.replace(wanted, kept=inference is not None)
        outputs = []
        for index, segment in enumerate(config.plan.with_loops(loops).segments):
            name = f"segment_{index}"
            if inference is not None:
                inputs = inference.given(inputs, index)
            rule = exit if segment.trained_loops > 1 else None
            # Of a plan without loops there are layers to change.
            is_changed = segment.trained_loops > 1 or not config.plan.looped
            changed = intervention if is_changed else None
            x_BTD, output = LoopedSegment(config, segment, wanted, rule, name=name)(
                x_BTD, inputs, loops_B, look, sizes_BS, train, changed
            )
            outputs.append(output)

        if has_final_norm(config):
            x_BTD = norm(config, "final_norm")(x_BTD)
        depth_BT = next((o.depth_BT for o in outputs if o.depth_BT is not None), None)
        if inference is not None and inference.last_B is not None:
            x_BTD = jnp.take_along_axis(x_BTD, inference.last_B[:, None, None], axis=1)
            if depth_BT is not None:
                depth_BT = jnp.take_along_axis(depth_BT, inference.last_B[:, None], axis=1)
        kernel_VD = (
            embed.embedding if config.tied_output else OutputKernel(config, name="output")().T
        )
        if config.layer == "ngpt":
            kept_V = self.param("logit_scale", kept_init(config, "vocab"), (config.vocab_size,))
            kernel_VD = scaled_kernel(config, kernel_VD, kept_V)
        return Output(x_BTD, kernel_VD, tuple(outputs), depth_BT)


def has_final_norm(config: ModelConfig) -> bool:
    """Whether a norm follows the last segment: not where the plan ends in loops that end in one
    each."""
    ends_in_norm = any(variant.ends_in_norm for variant in chosen(config).values())
    return not (ends_in_norm and config.plan.segments[-1].trained_loops > 1)


def read_out(
    model: LoopedTransformer,
    params: Any,
    inputs: LayerInputs,
    after: int,
    inference: Inference | None = None,
) -> Callable[[Array], Array]:
    """The function of a stream x_BTD which says what the output projection would be applied to, had
    segment ``after`` ended with this stream: its later segments and final norm. With
    ``inference``'s cache they attend to that."""
    config = model.config
    later = range(after + 1, len(config.plan.segments))
    segments = [LoopedSegment(config, config.plan.segments[i], parent=None) for i in later]
    last: Any = norm(config, None) if has_final_norm(config) else None

    def read(x_BTD: Array) -> Array:
        found: Any = x_BTD
        for index, segment in zip(later, segments, strict=True):
            name = f"segment_{index}"
            own = {kind: tree[name] for kind, tree in collections(params).items() if name in tree}
            given = inputs if inference is None else inference.given(inputs, index)
            found, _ = segment.apply(own, found, given)
        if isinstance(last, nn.Module):
            found = last.apply({"params": params.get("final_norm", {})}, found)
        elif last is not None:
            found = last(found)
        return found

    return read


def output_kernel(model: LoopedTransformer, params: Any) -> Array:
    """The output projection kernel_VD, as Output has it."""
    config = model.config
    kernel_VD: Array = (
        params["embed"]["embedding"] if config.tied_output else params["output"]["kernel"].T
    )
    if config.layer == "ngpt":
        kernel_VD = scaled_kernel(config, kernel_VD, params["logit_scale"])
    return kernel_VD


def next_token(
    model: LoopedTransformer,
    params: Any,
    inputs: LayerInputs,
    inference: Inference | None,
    segment: int | None = None,
) -> Callable[[Array], Array]:
    """The function of a segment's stream which says log p_BTV of the next token, float32, had it
    ended with this stream; by default the looped segment's."""
    config = model.config
    after = config.plan.looped[0] if segment is None else segment
    read = read_out(model, params, inputs, after, inference)
    kernel_VD = output_kernel(model, params)

    def look(x_BTD: Array) -> Array:
        logits_BTV = vocabulary_logits(config, read(x_BTD), kernel_VD)
        return jax.nn.log_softmax(laid_out(logits_BTV, "logits"))

    return look


def check_loops(model: LoopedTransformer, loops: int | None) -> None:
    """UserError if the model cannot be run with so many loops; nothing is computed."""
    if loops is None:
        return
    # Two tokens, for which there are no kernels.
    model = LoopedTransformer(dataclasses.replace(model.config, attention="xla", gather="layer"))
    tokens_BT = jnp.zeros((1, 2), jnp.int32)

    def run(key: Array) -> Any:
        params = nn.unbox(parameters(model.init(init_keys(key), tokens_BT)))
        return forward(model, params, tokens_BT, key=key, loops=loops).x_BTD

    jax.eval_shape(run, jax.random.key(0))


def forward(
    model: LoopedTransformer,
    params: Any,
    tokens_BT: Array,
    segment_ids_BT: Array | None = None,
    positions_BT: Array | None = None,
    *,
    key: Array | None = None,
    **asked: Any,
) -> Output:
    """What a model with these parameters makes of a batch; arguments as LoopedTransformer's.

    ``key`` is what a loop that draws (a random initial state, say) draws from.
    """
    rngs = None if key is None else {"loop": key}
    arguments = (tokens_BT, segment_ids_BT, positions_BT)
    exit: ExitRule | None = asked.get("exit")
    if exit is not None and exit.name == "kl":
        exit.check(model.config, asked.get("loops"))
        inputs = layer_inputs(model.config, *arguments)
        asked["look"] = next_token(model, params, inputs, asked.get("inference"))
    output: Any = model.apply(collections(params), *arguments, rngs=rngs, **asked)
    return output


def logits(config: ModelConfig, output: Output) -> Array:
    """float32 logits_BTV (for inference, if each row's last token is asked, [B, 1, V])."""
    logits_BTV = vocabulary_logits(config, output.x_BTD, output.kernel_VD)
    return laid_out(logits_BTV, "logits")


def batch_forward(
    model: LoopedTransformer, params: Any, batch: Mapping[str, Array], **asked: Any
) -> Output:
    """``forward`` of a batch of rows, with their loop counts if it says any (`loops`)."""
    arguments = (batch["tokens"], batch["segment_ids"], batch["positions"])
    return forward(model, params, *arguments, loops_B=batch.get("loops"), **asked)
