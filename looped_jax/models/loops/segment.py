"""A segment k⊗L: one `nn.scan` over L loops, whose body shares its parameters between loops, around
one `nn.scan` over k layers, whose parameters are stacked. Trace and compile time therefore do not
grow with k or L (unless `unroll` asks for it).

Whatever kind of loop it is, scans, rematerialisation, gathered weights and the cache are done here.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from looped_jax.errors import UserError
from looped_jax.models.config import ModelConfig
from looped_jax.models.layers import Array, KeyValues, Layer, LayerInputs
from looped_jax.models.loop_plan import Segment
from looped_jax.models.loops import VARIANTS
from looped_jax.models.loops.base import (
    PER_LOOP,
    Counts,
    LoopContext,
    LoopOutput,
    LoopState,
    LoopVariant,
    init_keys,
    row_at,
    rows_of,
)
from looped_jax.models.loops.counted import counted_loops
from looped_jax.models.loops.exits import ExitRule, until_exit
from looped_jax.parallel.mesh import BATCH_AXES
from looped_jax.parallel.per_device import gather, per_device, spec_of, split_axes


def unrolled_scans(config: ModelConfig, segment: Segment) -> tuple[bool, bool]:
    """Whether the scan over layers and the scan over loops are laid out straight."""
    mode = config.unroll
    if mode == "auto":
        depth = segment.layers * segment.loops
        mode = "full" if depth <= config.backend.unrolled_layers else "none"
    return mode in ("layers", "full"), mode == "full"


def remat(config: ModelConfig, target: Any, at: str, prevent_cse: bool) -> Any:
    """Wraps a module, or a method, so that its inside is recomputed in the backward pass.

    `layer` keeps only layer inputs, `loop` only the inputs of each loop, `dots` keeps matrix
    products without batch dimensions and recomputes the element-wise work, `names` keeps, of each
    layer, what config.saved_names say on the device and what config.offloaded_names say in the
    host's memory.
    """
    policies = jax.checkpoint_policies
    if config.remat == "dots" and at == "layer":
        policy = policies.dots_with_no_batch_dims_saveable
        return nn.remat(target, prevent_cse=prevent_cse, policy=policy)
    if config.remat == "names" and at == "layer":
        policy = policies.save_and_offload_only_these_names(
            names_which_can_be_saved=config.saved_names,
            names_which_can_be_offloaded=config.offloaded_names,
            offload_src="device",
            offload_dst="pinned_host",
        )
        return nn.remat(target, prevent_cse=prevent_cse, policy=policy)
    if config.remat == at:
        return nn.remat(target, prevent_cse=prevent_cse)
    return target


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What a pass returns beside the residual stream at its end, of every loop: keys and values,
    the stream, what variants emit."""

    kept: bool = False
    states: bool = False
    emitted: bool = False


NOTHING = Wanted()


class LayerStep(nn.Module):
    """A Layer in the form that `nn.scan` takes: (carry, the layer's number, broadcast inputs) ->
    (carry, the layer's new keys and values)."""

    config: ModelConfig
    keep: bool = False
    layer_class: type[Layer] = Layer

    @nn.compact
    def __call__(
        self, x_BTD: Array, layer: Array, loop: Array, inputs: LayerInputs
    ) -> tuple[Array, KeyValues | None]:
        """One layer; ``loop`` and ``layer`` tell its place in a cache."""
        made = self.layer_class(self.config, self.keep, name="layer")
        return made(x_BTD, inputs, (loop, layer))


class LoopedSegment(nn.Module):
    """k⊗L, a function of x_BTD: f∘f∘…∘f of the paper's section 1, with config.loop's variants."""

    config: ModelConfig
    segment: Segment
    wanted: Wanted = NOTHING
    exit: ExitRule | None = None

    def setup(self) -> None:
        """Makes the stack of layers and, in a segment that is looped, the variants, each under its
        option's name."""
        chosen = dict(self.config.loop) if self.segment.trained_loops > 1 else {}
        self.options = tuple(option for option in VARIANTS if option in chosen)
        variants = {option: VARIANTS[option][chosen[option]] for option in self.options}
        for option, variant in variants.items():
            setattr(self, option, variant(self.config))
        # Two kinds of layers would not know of each other.
        (layer_class,) = {variant.layer_class for variant in variants.values()} - {Layer} or {Layer}
        unroll, _ = unrolled_scans(self.config, self.segment)
        self.layers = nn.scan(
            # Inside a rolled scan XLA cannot merge the recomputation with the original.
            remat(self.config, LayerStep, "layer", prevent_cse=unroll),
            variable_axes={"params": 0, PER_LOOP: 0},
            split_rngs={"params": True, PER_LOOP: True},
            in_axes=(0, nn.broadcast, nn.broadcast),
            length=self.segment.layers,
            unroll=self.segment.layers if unroll else 1,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(self.config, self.wanted.kept, layer_class)

    def variants(self) -> list[tuple[str, LoopVariant]]:
        """Option and variant, in the order in which they enter a loop."""
        return [(option, getattr(self, option)) for option in self.options]

    def __call__(
        self,
        x_BTD: Array,
        inputs: LayerInputs,
        loops_B: Array | None = None,
        look: Callable[[Array], Any] | None = None,
    ) -> tuple[Array, LoopOutput]:
        """The stream after all loops, and what was wanted of each, [L, …]. With ``loops_B``, loop
        counts of the rows that are data, nothing is wanted. ``look``: see LoopContext; a segment
        that is not looped has none."""
        counts = None
        if self.segment.trained_loops == 1:
            look = None
        elif loops_B is not None:
            counts = Counts(loops_B, jnp.max(loops_B), self.config.gradient_loops)
        context = LoopContext(x_BTD, inputs, self.segment.loops, counts=counts, look=look)
        for _, variant in self.variants():
            context = variant.prepare(context)
        state = self.start(context)
        trains = not self.wanted.kept and not self.is_initializing()
        if self.exit is not None:
            state, output = self.leaving(state, context, self.exit)
        elif self.config.gather == "segment" and trains:
            assert context.look is None, "it closes over weights that are not gathered"
            state, output = gathered_once(self, state, context)
        else:
            state, output = self.all_loops(state, context)
        return self.finish(state, context), output

    def start(self, context: LoopContext) -> LoopState:
        """The state before the first loop."""
        state = LoopState(context.x0_BTD)
        for _, variant in self.variants():
            state = variant.start(state, context)
        return state

    def finish(self, state: LoopState, context: LoopContext) -> Array:
        """x_BTD of the state after the last loop."""
        for _, variant in self.variants():
            state = variant.finish(state, context)
        return state.x_BTD

    def one_loop(
        self, state: LoopState, loop: Array, context: LoopContext
    ) -> tuple[LoopState, LoopOutput]:
        """One pass through the k layers: the block f."""
        for _, variant in self.variants():
            state = variant.enter(state, context, loop)
        inputs = context.inputs
        for _, variant in self.variants():
            inputs = variant.layer_inputs(inputs, state, context, loop)
        numbers = jnp.arange(self.segment.layers)
        slot, cache = loop, inputs.cache
        if cache is not None and len(cache.k) != self.segment.loops:
            # Loops share slots (inference/policy.py), or a draft leaves the last ones alone.
            slot = loop % len(cache.k)
        x_BTD, kept = self.layers(state.x_BTD, numbers, slot, inputs)
        state = state.replace(x_BTD=x_BTD)
        for _, variant in reversed(self.variants()):
            state = variant.leave(state, context, loop)
        wanted, emitted = self.wanted, {}
        if wanted.emitted:
            found = {option: variant.emit(state, loop) for option, variant in self.variants()}
            emitted = {option: value for option, value in found.items() if value is not None}
        looked = None if context.look is None else context.look(state.x_BTD)
        return state, LoopOutput(kept, state.x_BTD if wanted.states else None, emitted, looked)

    def all_loops(self, state: LoopState, context: LoopContext) -> tuple[LoopState, LoopOutput]:
        """L times one_loop, or as often as context.counts says."""
        if context.counts is not None:
            return self.counted(state, context, context.counts), LoopOutput()
        _, unroll = unrolled_scans(self.config, self.segment)
        loops, trained = self.segment.loops, self.segment.trained_loops
        run = nn.scan(
            remat(self.config, LoopedSegment.one_loop, "loop", prevent_cse=unroll),
            variable_broadcast="params",
            variable_axes={PER_LOOP: 0},
            split_rngs={"params": False, PER_LOOP: True},
            in_axes=(0, nn.broadcast),
            length=loops,
            unroll=loops if unroll else 1,
            metadata_params={nn.PARTITION_NAME: "loops"},
        )
        if loops != trained and not self.is_initializing():
            run = nn.map_variables(
                run,
                PER_LOOP,
                lambda rows: jax.tree.map(
                    lambda array_L: rows_of(array_L, loops, self.config.beyond_trained), rows
                ),
            )
        return run(self, state, jnp.arange(loops), context)

    def counted(self, state: LoopState, context: LoopContext, counts: Counts) -> LoopState:
        """one_loop as often as ``counts`` say."""
        config, segment = self.config, self.segment
        if self.wanted != NOTHING or context.look is not None:
            raise UserError("loop counts that are data leave nothing behind of each loop")
        _, unroll = unrolled_scans(config, segment)
        run = LoopedSegment(config, segment, parent=None)

        def step(learned: Any, state: LoopState, loop: Array) -> LoopState:
            variables, context = learned
            own = jax.tree.map(
                lambda array_L: row_at(array_L, loop, config.beyond_trained),
                variables.get(PER_LOOP, {}),
            )
            variables = {"params": variables["params"], PER_LOOP: own}
            found: Any = run.apply(variables, state, loop, context, method="one_loop")
            return found[0]

        if config.remat == "loop":
            step = jax.checkpoint(step, prevent_cse=unroll)
        learned = (dict(self.variables), context)
        return counted_loops(step, learned, state, counts, unroll)

    def leaving(
        self, state: LoopState, context: LoopContext, rule: ExitRule
    ) -> tuple[LoopState, LoopOutput]:
        """one_loop until every token has left by ``rule``; context.look gives log p."""
        config, segment = self.config, self.segment
        wanted = Wanted(self.wanted.kept, emitted=rule.name == "cdf")
        run = LoopedSegment(config, segment, wanted, parent=None)
        params, look, context = self.variables["params"], context.look, context.replace(look=None)
        rows = jax.tree.map(
            lambda array_L: rows_of(array_L, segment.loops, config.beyond_trained),
            self.variables.get(PER_LOOP, {}),
        )

        def step(state: LoopState, loop: Array) -> tuple[LoopState, LoopOutput]:
            own = jax.tree.map(lambda array_L: array_L[loop], rows)
            variables = {"params": params, PER_LOOP: own}
            found: Any = run.apply(variables, state, loop, context, method="one_loop")
            return found

        def read(state: LoopState) -> Any:
            if look is None:
                return None
            x_BTD: Any = run.apply({"params": params}, state, context, method="finish")
            return look(x_BTD)

        # What a prompt's tokens leave in the cache is of all loops.
        whole = self.wanted.kept and context.inputs.cache is None
        return until_exit(step, read, config, rule, state, segment.loops, whole)


def gathered_once(
    bound: LoopedSegment, state: LoopState, context: LoopContext
) -> tuple[LoopState, LoopOutput]:
    """All loops of a segment whose fsdp-sharded weights are brought together once, in the compute
    dtype, for all of them, and whose gradients are summed over devices once, after all of them.

    Brought together in the compute type are the kernels, which every layer would cast to it: a
    norm's scale, say, is multiplied in float32 here too.

    The price is a copy of the segment's weights on each device, and one of their gradients.
    """
    config, segment = bound.config, bound.segment
    variables = {kind: tree for kind, tree in bound.variables.items() if tree}
    run = LoopedSegment(config, segment, bound.wanted, parent=None)
    axes = split_axes(BATCH_AXES)
    if not axes:
        found: Any = run.apply(variables, state, context, method="all_loops")
        return found
    as_trained = dataclasses.replace(segment, loops=segment.trained_loops)
    boxed = jax.eval_shape(
        LoopedSegment(config, as_trained, parent=None).init,
        init_keys(jax.random.key(0)),
        context.x0_BTD,
        context.inputs,
    )
    specs = jax.tree.map(
        lambda names: spec_of(names, axes),
        nn.get_partition_spec(boxed),
        is_leaf=lambda leaf: isinstance(leaf, PartitionSpec),
    )
    rows = spec_of(("batch",), axes)

    def type_of(path: Any, array: Array) -> Any:
        is_kernel = jax.tree_util.keystr(path[-1:], simple=True) == "kernel"
        return config.dtype if is_kernel else array.dtype

    def on_device(variables: Any, state: LoopState, context: LoopContext) -> Any:
        whole = jax.tree_util.tree_map_with_path(
            lambda path, p, spec: gather(p.astype(type_of(path, p)), spec), variables, specs
        )
        return run.apply(whole, state, context, method="all_loops")

    def of_arrays(tree: Any) -> Any:
        return jax.tree.map(lambda array: rows if array.ndim else PartitionSpec(), tree)

    in_specs = (specs, of_arrays(state), of_arrays(context))
    # What each loop leaves has the loops in front of the rows.
    out_specs = (of_arrays(state), PartitionSpec(None, *rows))
    return per_device(on_device, axes, in_specs, out_specs)(variables, state, context)
