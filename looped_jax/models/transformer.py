"""LoopedTransformer: embed -> segments of a LoopPlan -> final norm -> output.

A segment k⊗L is one `nn.scan` over L loops, whose body shares its parameters between loops,
around one `nn.scan` over k layers, whose parameters are stacked. Trace and compile time
therefore do not grow with k or L (unless `unroll` asks for it).

Shapes in names: see models/layers.py.
"""

import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import PartitionSpec

from looped_jax.models.layers import (
    Array,
    KeyValues,
    Layer,
    LayerInputs,
    ModelConfig,
    norm,
    partitioned,
    rope_angles,
)
from looped_jax.models.loop_plan import Segment
from looped_jax.models.output import OutputKernel, vocabulary_logits
from looped_jax.parallel.mesh import BATCH_AXES
from looped_jax.parallel.per_device import gather, per_device, spec_of, split_axes

# XLA runs a while loop's body slower than the same operations laid out straight: on CPU by
# 20-40% (docs/performance.md), where a compile of up to this many layers is also cheap.
# Deeper models keep both scans rolled, so that compile time stays bounded.
CPU_UNROLL_MAX_DEPTH = 12


def unrolled_scans(config: ModelConfig, segment: Segment) -> tuple[bool, bool]:
    """Whether the scan over layers and the scan over loops are laid out straight."""
    mode = config.unroll
    if mode == "auto":
        on_cpu = config.platform == "cpu"
        shallow = segment.layers * segment.loops <= CPU_UNROLL_MAX_DEPTH
        mode = "full" if on_cpu and shallow else "none"
    return mode in ("layers", "full"), mode == "full"


def remat(config: ModelConfig, module: Any, at: str, prevent_cse: bool) -> Any:
    """Wraps a module so that its inside is recomputed in the backward pass.

    `layer` keeps only layer inputs, `loop` only the inputs of each loop, `dots` keeps matrix
    products without batch dimensions and recomputes the element-wise work, `names` keeps, of each
    layer, what config.saved_names say on the device and what config.offloaded_names say in the
    host's memory.
    """
    policies = jax.checkpoint_policies
    if config.remat == "dots" and at == "layer":
        policy = policies.dots_with_no_batch_dims_saveable
        return nn.remat(module, prevent_cse=prevent_cse, policy=policy)
    if config.remat == "names" and at == "layer":
        policy = policies.save_and_offload_only_these_names(
            names_which_can_be_saved=config.saved_names,
            names_which_can_be_offloaded=config.offloaded_names,
            offload_src="device",
            offload_dst="pinned_host",
        )
        return nn.remat(module, prevent_cse=prevent_cse, policy=policy)
    if config.remat == at:
        return nn.remat(module, prevent_cse=prevent_cse)
    return module


class LayerStep(nn.Module):
    """A Layer in the form that `nn.scan` takes: (carry, the layer's number, broadcast inputs) ->
    (carry, the layer's new keys and values)."""

    config: ModelConfig
    keep: bool = False

    @nn.compact
    def __call__(
        self, x_BTD: Array, layer: Array, loop: Array, inputs: LayerInputs
    ) -> tuple[Array, KeyValues | None]:
        return Layer(self.config, self.keep, name="layer")(x_BTD, inputs, (loop, layer))


class LoopBody(nn.Module):
    """One pass through a segment's k layers: the block f of the paper's f∘f∘…∘f.

    What changes per loop (input injection, a loop embedding, an early exit) belongs here:
    ``loop`` counts from 0, and with the layer's number tells its place in a cache.
    """

    config: ModelConfig
    segment: Segment
    keep: bool = False

    @nn.compact
    def __call__(
        self, x_BTD: Array, loop: Array, inputs: LayerInputs
    ) -> tuple[Array, KeyValues | None]:
        unroll, _ = unrolled_scans(self.config, self.segment)
        layers = nn.scan(
            # Inside a rolled scan XLA cannot merge the recomputation with the original.
            remat(self.config, LayerStep, "layer", prevent_cse=unroll),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast, nn.broadcast),
            length=self.segment.layers,
            unroll=self.segment.layers if unroll else 1,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        stack = layers(self.config, self.keep, name="layers")
        return stack(x_BTD, jnp.arange(self.segment.layers), loop, inputs)


@struct.dataclass
class Inference:
    """Asks for the logits of one token per row only, and for every layer's keys and values.

    last_B: that token's place. Later places of a row may hold anything: nothing looks at them.
    cache: with it (decode, T = 1) the tokens attend to themselves and to the places of the cache
      where ``seen_BS`` is True. It is a KeyValues per segment, [L, k, B, G, S, K], as is what
      is kept: each loop of a layer has keys and values of its own.
    """

    last_B: Array
    cache: tuple[KeyValues, ...] | None = None
    seen_BS: Array | None = None


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
        inference: Inference | None = None,
        hidden: bool = False,
    ) -> Any:
        """Returns float32 logits_BTV, or for inference (logits_BV of the last token, kept), or
        x_BTD, which models/loss.py takes to the vocabulary in parts.

        Args:
          tokens_BT: int32 token ids.
          segment_ids_BT: int32 document number in a packed row; a token attends only within
            its own document. None: each row is one document.
          positions_BT: int32 position within the document. None: 0, 1, 2, …
          loops: overrides the loop count of looped segments (static).
          inference: see Inference.
          hidden: return what the output projection would be applied to.
        """
        config = self.config
        if positions_BT is None:
            positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)

        embed = nn.Embed(
            config.vocab_size,
            config.d_model,
            dtype=config.dtype,
            embedding_init=partitioned(
                nn.initializers.normal(config.d_model**-0.5), "vocab", "embed"
            ),
            name="embed",
        )
        x_BTD = embed(tokens_BT)
        if split_axes(("fsdp",)):
            # Each device looks all rows of its group up in its part of the table, and only then do
            # the rows go to their devices: asked for both at once, XLA gathers the whole table.
            x_BTD = nn.with_logical_constraint(x_BTD, ("embedded_batch", "length", "embed"))
        if config.positions == "learned":
            table_TD = self.param(
                "position_embedding",
                partitioned(nn.initializers.normal(config.d_model**-0.5), "positions", "embed"),
                (config.max_length, config.d_model),
            )
            x_BTD = x_BTD + table_TD.astype(config.dtype)[positions_BT]
        # As in Vaswani et al. 2017, section 3.4: the residual stream starts at unit scale, or what
        # the first pass adds would bury the token, which a looped block must still read later;
        # the logits of a tied output are of unit scale too.
        x_BTD = x_BTD * jnp.asarray(config.d_model**0.5, config.dtype)
        x_BTD = nn.with_logical_constraint(x_BTD, ("batch", "length", "activation_embed"))

        inputs = LayerInputs(rope_angles(config, positions_BT), segment_ids_BT)
        kept = []
        for index, segment in enumerate(config.plan.with_loops(loops).segments):
            name = f"segment_{index}"
            if config.gather == "segment" and inference is None and not self.is_initializing():
                params = self.variables["params"][name]
                x_BTD = gathered_once(config, segment, params, x_BTD, inputs)
                continue
            run = looped_segment(config, segment, name, keep=inference is not None)
            if inference is not None and inference.cache is not None:
                own = inference.cache[index]
                inputs = inputs.replace(cache=own, seen_BS=inference.seen_BS)  # type: ignore[attr-defined]
            x_BTD, of_segment = run(x_BTD, jnp.arange(segment.loops), inputs)
            kept.append(of_segment)

        x_BTD = norm(config, "final_norm")(x_BTD)
        if hidden:
            return x_BTD
        if inference is not None:
            x_BTD = jnp.take_along_axis(x_BTD, inference.last_B[:, None, None], axis=1)
        kernel_VD = (
            embed.embedding if config.tied_output else OutputKernel(config, name="output")().T
        )
        logits_BTV = vocabulary_logits(config, x_BTD, kernel_VD)
        logits_BTV = nn.with_logical_constraint(logits_BTV, ("batch", "length", "activation_vocab"))
        return logits_BTV if inference is None else (logits_BTV[:, 0], tuple(kept))


def hidden_and_kernel(
    model: LoopedTransformer, params: Any, batch: Mapping[str, Array], loops: int | None = None
) -> tuple[Array, Array]:
    """x_BTD of a batch of rows and the output projection, kernel_VD: what models/loss.py takes."""
    x_BTD: Any = model.apply(
        {"params": params},
        batch["tokens"],
        batch["segment_ids"],
        batch["positions"],
        loops=loops,
        hidden=True,
    )
    if model.config.tied_output:
        return x_BTD, params["embed"]["embedding"]
    return x_BTD, params["output"]["kernel"].T


def gathered_once(
    config: ModelConfig, segment: Segment, params: Any, x_BTD: Array, inputs: LayerInputs
) -> Array:
    """A segment whose fsdp-sharded weights are brought together once, in the compute dtype, for all
    of its loops, and whose gradients are summed over devices once, after all of them.

    The price is a copy of the segment's weights on each device, and one of their gradients.
    """
    run = looped_segment(config, segment)
    loops = jnp.arange(segment.loops)
    axes = split_axes(BATCH_AXES)
    if not axes:
        return run.apply({"params": params}, x_BTD, loops, inputs)[0]
    boxed = jax.eval_shape(run.init, jax.random.key(0), x_BTD, loops, inputs)
    specs = jax.tree.map(
        lambda names: spec_of(names, axes),
        nn.get_partition_spec(boxed)["params"],
        is_leaf=lambda leaf: isinstance(leaf, PartitionSpec),
    )
    rows = spec_of(("batch",), axes)

    def on_device(params: Any, x_BTD: Array, inputs: LayerInputs) -> Array:
        whole = jax.tree.map(lambda p, spec: gather(p.astype(config.dtype), spec), params, specs)
        return run.apply({"params": whole}, x_BTD, loops, inputs)[0]

    of_inputs = jax.tree.map(lambda _: rows, inputs)
    return per_device(on_device, axes, (specs, rows, of_inputs), rows)(params, x_BTD, inputs)


def looped_segment(
    config: ModelConfig, segment: Segment, name: str | None = None, keep: bool = False
) -> nn.Module:
    """k⊗L: `nn.scan` over loops; the same parameters are broadcast to every loop. Without a name it
    stands alone."""
    _, unroll = unrolled_scans(config, segment)
    body = functools.partial(
        nn.scan,
        variable_broadcast="params",
        split_rngs={"params": False},
        in_axes=(0, nn.broadcast),
        length=segment.loops,
        unroll=segment.loops if unroll else 1,
    )(remat(config, LoopBody, "loop", prevent_cse=unroll))
    if name is None:
        return body(config, segment, keep, parent=None)
    return body(config, segment, keep, name=name)
