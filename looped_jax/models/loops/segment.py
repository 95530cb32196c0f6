"""A segment k⊗L: one `nn.scan` over L loops, whose body shares its parameters between loops, around
one over k layers (models/loops/stack.py). Trace and compile time therefore do not grow with k or L
(unless `unroll` asks for it).

Whatever kind of loop it is, scans, rematerialisation, gathered weights and the cache are done here.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from looped_jax.errors import UserError
from looped_jax.models.config import ModelConfig
from looped_jax.models.execution import SHOWN
from looped_jax.models.layer_kinds import layer_class
from looped_jax.models.layers import Array, LayerInputs
from looped_jax.models.loop_plan import Segment
from looped_jax.models.loops import chosen, places_in, runs_of
from looped_jax.models.loops.active import among, gathered, put_back, seen_in
from looped_jax.models.loops.base import (
    PER_LOOP,
    Counts,
    Intervention,
    LoopContext,
    LoopOutput,
    LoopState,
    LoopVariant,
    Run,
    Trajectory,
    row_at,
    rows_of,
)
from looped_jax.models.loops.counted import counted_loops
from looped_jax.models.loops.exits import ExitRule, until_exit
from looped_jax.models.loops.gathering import gathered_once
from looped_jax.models.loops.stack import remat, stack_of, unrolled_scans
from looped_jax.models.loops.trajectory import loops_along
from looped_jax.models.loops.watched import watched


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What a pass returns beside the residual stream at its end, of every loop: keys and values,
    the stream, what variants emit, and, of segments that are looped, what is watched."""

    kept: bool = False
    states: bool = False
    emitted: bool = False
    watched: bool = False


NOTHING = Wanted()


class LoopedSegment(nn.Module):
    """k⊗L, a function of x_BTD: f∘f∘…∘f of the paper's section 1, with config.loop's variants."""

    config: ModelConfig
    segment: Segment
    wanted: Wanted = NOTHING
    exit: ExitRule | None = None

    def setup(self) -> None:
        """Makes the stack of layers, or the stacks, and, in a segment that is looped, the variants,
        each under its option's name."""
        variants = chosen(self.config) if self.segment.trained_loops > 1 else {}
        self.options = tuple(variants)
        for option, variant in variants.items():
            setattr(self, option, variant(self.config))
        names = dict(self.config.loop)
        of_loops = {f"{of}={names[of]!r}": kind.layer_class for of, kind in variants.items()}
        kind_of_layer = layer_class(self.config, of_loops)
        stacks = max([variant.stacks for variant in variants.values()], default=1)
        self.hears_layers = any(variant.hears_layers for variant in variants.values())
        what = (kind_of_layer, self.wanted.kept, self.hears_layers, self.is_initializing())
        made = [stack_of(self.config, self.segment, *what) for _ in range(stacks)]
        self.layers, self.more_layers = made[0], made[1:]

    def variants(self) -> list[tuple[str, LoopVariant]]:
        """Option and variant, in the order in which they enter a loop."""
        return [(option, getattr(self, option)) for option in self.options]

    def __call__(
        self,
        x_BTD: Array,
        inputs: LayerInputs,
        loops_B: Array | None = None,
        look: Callable[[Array], Any] | None = None,
        sizes_BS: Array | None = None,
        train: bool = False,
        intervention: Intervention | None = None,
    ) -> tuple[Array, LoopOutput]:
        """The stream after all loops, and what was wanted of each, [L, …]. With ``loops_B``, loop
        counts of the rows that are data, or ``sizes_BS``, the sizes of loops (Trajectory.of),
        nothing is wanted. ``look``, ``train``, ``intervention``: see LoopContext; ``look`` is for
        what is looped."""
        counts = trajectory = None
        if self.segment.trained_loops == 1:
            look = None
        elif loops_B is not None:
            counts = Counts(loops_B, jnp.max(loops_B), self.config.gradient_loops)
        elif sizes_BS is not None:
            trajectory = Trajectory.of(sizes_BS)
        context = LoopContext(
            x_BTD,
            inputs,
            self.segment.loops,
            counts=counts,
            trajectory=trajectory,
            look=look,
            layers=self.segment.layers,
            trained=self.segment.trained_loops,
            train=train,
            intervention=intervention,
        )
        if intervention is not None and intervention.layer is not None:
            context = context.replace(inputs=inputs.replace(change=intervention.layer))
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
        if output.depth_BT is not None and self.exit is None:
            output = output.replace(depth_BT=jnp.sum(output.depth_BT, axis=0))
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

    def watch(self) -> dict[str, Array]:
        """What variants say of their parameters, see LoopVariant.watch."""
        found = [variant.watch() for _, variant in self.variants()]
        return {name: value for of_one in found for name, value in of_one.items()}

    def one_loop(
        self, state: LoopState, loop: Array, context: LoopContext, places: int | None = None
    ) -> tuple[LoopState, LoopOutput]:
        """One pass through k layers: the block f, of context.kind. With ``places``, the number of
        active tokens of each row, only these go through the layers."""
        before_BTD = begun_BTD = state.x_BTD
        for _, variant in self.variants():
            before_BTD = variant.updated(before_BTD, state, context)
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
        stacks = [self.layers, *self.more_layers]
        layers = stacks[context.kind % len(stacks)]
        active_BT, x_BTD = self.active(state), state.x_BTD
        if active_BT is not None:
            inputs = among(active_BT, inputs) if cache is None else seen_in(slot, inputs)
        if places is None or active_BT is None:
            x_BTD, (kept, entered) = layers(x_BTD, numbers, slot, inputs)
        else:
            x_BPD, inputs = gathered(active_BT, places, x_BTD, inputs)
            x_BPD, (kept, entered) = layers(x_BPD, numbers, slot, inputs)
            x_BTD = put_back(active_BT, x_BPD, x_BTD)
        if kept is not None and active_BT is not None:
            kept = kept.replace(used=active_BT)
        state = state.replace(x_BTD=x_BTD, entered=entered)
        for _, variant in reversed(self.variants()):
            state = variant.leave(state, context, loop)
        state = state.replace(entered=None)
        if context.intervention is not None and context.intervention.loop is not None:
            state = state.replace(x_BTD=context.intervention.loop(begun_BTD, state.x_BTD, loop))
        wanted, emitted = self.wanted, {}
        if wanted.emitted:
            found = {option: variant.emit(state, loop) for option, variant in self.variants()}
            emitted = {option: value for option, value in found.items() if value is not None}
        looked = None if context.look is None else context.look(state.x_BTD)
        seen = {}
        if wanted.watched and self.segment.trained_loops > 1:
            seen = watched(before_BTD, state.x_BTD, context.token_BT)
        depth_BT = None
        if active_BT is not None and not context.train:
            depth_BT = active_BT.astype(jnp.int32)
        left_BTD = state.x_BTD if wanted.states else None
        return state, LoopOutput(kept, left_BTD, emitted, looked, seen, depth_BT)

    def active(self, state: LoopState) -> Array | None:
        """The tokens that are in the loop which was entered, bool [B, T]; None: all."""
        said = [variant.active(state) for _, variant in self.variants()]
        return next((active_BT for active_BT in said if active_BT is not None), None)

    def all_loops(self, state: LoopState, context: LoopContext) -> tuple[LoopState, LoopOutput]:
        """L times one_loop, or as often as context.counts or context.trajectory say."""
        if context.counts is not None or context.trajectory is not None:
            return self.counted(state, context), LoopOutput()
        if context.train and self.config.routed_tokens == "gathered":
            return self.straight(state, context)
        runs, first, outputs = runs_of(self.config, self.segment), 0, []
        if self.is_initializing():
            runs = (Run(self.segment.loops),)  # What each loop has for itself is made by one scan.
        for run in runs:
            state, output = self.loops_in_a_row(state, context, run, first)
            outputs.append(output)
            first += run.loops
        if len(outputs) == 1:
            return state, outputs[0]
        return state, jax.tree.map(lambda *of_runs: jnp.concatenate(of_runs), *outputs)

    def loops_in_a_row(
        self, state: LoopState, context: LoopContext, run: Run, first: int
    ) -> tuple[LoopState, LoopOutput]:
        """Loops that are alike, from number ``first`` on."""
        _, unroll = unrolled_scans(self.config, self.segment)
        loops, trained = self.segment.loops, self.segment.trained_loops
        beyond = self.config.beyond_trained
        one_loop = LoopedSegment.of_every_kind if self.is_initializing() else LoopedSegment.one_loop
        scan = nn.scan(
            remat(self.config, one_loop, "loop", prevent_cse=unroll),
            variable_broadcast="params",
            variable_axes={PER_LOOP: 0, SHOWN: 0},
            split_rngs={"params": False, PER_LOOP: True},
            in_axes=(0, nn.broadcast),
            length=run.loops,
            unroll=run.loops if unroll else 1,
            metadata_params={nn.PARTITION_NAME: "loops"},
            # As in stack_of; here shared parameters are made by it.
            check_constancy_invariants=self.is_initializing(),
        )
        here: Any = slice(first, first + run.loops)
        order = None if context.intervention is None else context.intervention.order
        is_whole, most = run.loops == loops == trained, loops
        if order is not None:
            here, is_whole, most = np.asarray(order[here], np.int32), False, max(order) + 1
        if not is_whole and not self.is_initializing():

            def own(array_L: Array) -> Array:
                return rows_of(array_L, most, beyond)[here]

            scan = nn.map_variables(scan, PER_LOOP, lambda rows: jax.tree.map(own, rows))
        numbers = jnp.arange(first, first + run.loops) if order is None else jnp.asarray(here)
        context = context.replace(kind=run.kind)
        if run.gradient:
            return scan(self, state, numbers, context)
        scan = nn.map_variables(scan, ("params", PER_LOOP), jax.lax.stop_gradient)
        held, context = jax.lax.stop_gradient((state, context))
        after, output = scan(self, held, numbers, context)
        for _, variant in self.variants():
            after = variant.around(state, after)
        return after, output

    def of_every_kind(
        self, state: LoopState, loop: Array, context: LoopContext
    ) -> tuple[LoopState, LoopOutput]:
        """A loop through each of the stacks: makes all parameters."""
        output = LoopOutput()
        for kind in range(1 + len(self.more_layers)):
            state, output = self.one_loop(state, loop, context.replace(kind=kind))
        return state, output

    def straight(self, state: LoopState, context: LoopContext) -> tuple[LoopState, LoopOutput]:
        """L times one_loop, laid out straight, each with its own number of tokens."""
        config, segment, length = self.config, self.segment, state.x_BTD.shape[1]
        run = LoopedSegment(config, segment, self.wanted, parent=None)
        variables, outputs = dict(self.variables), []

        def step(
            loop: int, variables: Any, state: LoopState, context: LoopContext
        ) -> tuple[LoopState, LoopOutput]:
            own = jax.tree.map(lambda array_L: array_L[loop], variables.get(PER_LOOP, {}))
            variables = {"params": variables["params"], PER_LOOP: own}
            count = places_in(config, loop, segment.loops, length)
            given = (state, jnp.int32(loop), context, None if count == length else count)
            found: Any = run.apply(variables, *given, method="one_loop")
            return found

        for loop in range(segment.loops):
            one: Any = functools.partial(step, loop)
            one = jax.checkpoint(one) if config.remat == "loop" else one
            state, output = one(variables, state, context)
            outputs.append(output)
        return state, jax.tree.map(lambda *of_loops: jnp.stack(of_loops), *outputs)

    def counted(self, state: LoopState, context: LoopContext) -> LoopState:
        """one_loop as often as data say."""
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

        learned = (dict(self.variables), context)
        if context.trajectory is not None:
            return loops_along(step, learned, state, context.trajectory, unroll)
        assert context.counts is not None
        if config.remat == "loop":
            step = jax.checkpoint(step, prevent_cse=unroll)
        return counted_loops(step, learned, state, context.counts, unroll)

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
