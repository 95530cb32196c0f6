"""What a kind of loop may do differently from the plain one, and what it is given for that.

A segment k⊗L passes its input x0 through the same k layers L times (models/loops/segment.py):

    context <- prepare(x0);  state <- start(x0)
    L times:  state <- enter(state);  state.x <- layers(state.x, layer_inputs);
              state <- leave(state)
    x <- finish(state)

A variant is a LoopVariant that replaces some of these steps. Shapes in names as in
models/layers.py; L loops.
"""

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from looped_jax.errors import UserError
from looped_jax.models.config import ModelConfig
from looped_jax.models.execution import partitioned
from looped_jax.models.layers import Array, KeyValues, Layer, LayerInputs, is_token

# Flax's collection of parameters of which every loop has its own: [L, …] with the trained L.
PER_LOOP = "per_loop"


class Run(NamedTuple):
    """Loops in a row that are alike: how many, of which kind, and whether gradients go through
    them, to what is learned and to the state before. With S stacks of layers those of kind i go
    through number i mod S."""

    loops: int
    kind: int = 0
    gradient: bool = True


class LoopState(struct.PyTreeNode):
    """What goes from loop to loop: the residual stream, and by option of config.loop whatever a
    variant carries beside it, arrays [B, …]. ``entered``: between the layers and the end of a loop,
    the streams [k, B, T, D] that entered each layer, for a variant with `hears_layers`."""

    x_BTD: Array
    extra: dict[str, Any] = struct.field(default_factory=dict)
    entered: Array | None = None


class Counts(struct.PyTreeNode):
    """Loop counts that are data (models/loops/counted.py): int32, of each row and the largest, and
    how many of a row's loops have gradients, the last ones."""

    loops_B: Array
    longest: Array
    with_gradient: int = struct.field(pytree_node=False, default=0)

    @property
    def before(self) -> tuple[Array, Array]:
        """Loops without gradients, of each row and of one with the largest count."""
        return (
            jnp.maximum(self.loops_B - self.with_gradient, 0),
            jnp.maximum(self.longest - self.with_gradient, 0),
        )

    def number_B(self, loop: Array) -> Array:
        """Each row's own number of the loop that is number ``loop`` of a row with the largest
        count; anything for a row that waits."""
        before_B, before = self.before
        return jnp.where(loop < before, loop, loop - before + before_B)


class Trajectory(struct.PyTreeNode):
    """Loops as steps through time from 0 to 1, as data (models/loops/trajectory.py): float32 sizes
    and starts of at most S steps, and how many there are, int32, the same in all rows."""

    sizes_BS: Array
    starts_BS: Array
    steps: Array

    @classmethod
    def of(cls, sizes_BS: Array) -> "Trajectory":
        """The trajectory of these sizes, 0 behind the last."""
        starts_BS = jnp.cumsum(sizes_BS, axis=1) - sizes_BS
        return cls(sizes_BS, starts_BS, jnp.max(jnp.sum(sizes_BS > 0, axis=1, dtype=jnp.int32)))

    def at(self, loop: Array) -> tuple[Array, Array]:
        """Start and size of a step, [B, 1]."""
        start_B, size_B = (jnp.take(of, loop, axis=1) for of in (self.starts_BS, self.sizes_BS))
        return start_B[:, None], size_B[:, None]


class Intervention(NamedTuple):
    """What is changed in the looped segments of a pass, to see what depends on it
    (looped_jax/inside/interventions.py).

    order: the numbers of the loops that are gone through, from 0, in place of 0, 1, …, L - 1.
    loop: of the stream with which a loop begins and ends, [B, T, D], and its number, int32, what
      stands in the place of the second.
    layer: the same of a layer, with its number behind the loop's.
    """

    order: tuple[int, ...] | None = None
    loop: Callable[[Array, Array, Array], Array] | None = None
    layer: Callable[[Array, Array, Array, Array], Array] | None = None


class LoopContext(struct.PyTreeNode):
    """What is the same in all loops of a segment: its input, what its layers are given, the number
    of loops, what variants compute once for all of them, arrays [B, …], loop counts or a trajectory
    if these are data (then ``loops`` says nothing), and what looks at the stream at the end of
    every loop.

    kind: of the Run that a loop belongs to.
    layers: k.
    trained: the plan's number of loops, for which there are parameters.
    train: whether the pass is one of training, for kinds of loops that have other rules there.
    intervention: what is changed in it, if anything is.
    """

    x0_BTD: Array
    inputs: LayerInputs
    loops: int = struct.field(pytree_node=False, default=1)
    extra: dict[str, Any] = struct.field(default_factory=dict)
    counts: Counts | None = None
    trajectory: Trajectory | None = None
    look: Callable[[Array], Any] | None = struct.field(pytree_node=False, default=None)
    kind: int = struct.field(pytree_node=False, default=0)
    layers: int = struct.field(pytree_node=False, default=1)
    trained: int = struct.field(pytree_node=False, default=1)
    train: bool = struct.field(pytree_node=False, default=False)
    intervention: Intervention | None = struct.field(pytree_node=False, default=None)

    @property
    def token_BT(self) -> Array:
        """True where a row has a token, not padding."""
        return is_token(self.inputs.segment_ids_BT, self.x0_BTD)


class LoopOutput(struct.PyTreeNode):
    """What a loop leaves behind; of a whole segment [L, …]. None is what nobody asked for.

    kept: the keys and values of its layers, [k, B, G, T, K] each; `used` [B, T].
    x_BTD: the residual stream at its end.
    emitted: by option of config.loop what a variant says of the loop (a gate's logit, say), arrays
      [B, …].
    looked: what LoopContext.look made of x_BTD, arrays [B, …].
    watched: the numbers of models/loops/watched.py, sums over the tokens of a row, [B] each.
    depth_BT: where tokens leave by a rule (models/loops/exits.py) or are not in all loops
      (LoopVariant.active): the loops that each took, int32; of one loop 1 or 0.
    """

    kept: KeyValues | None = None
    x_BTD: Array | None = None
    emitted: dict[str, Any] = struct.field(default_factory=dict)
    looked: Any = None
    watched: dict[str, Array] = struct.field(default_factory=dict)
    depth_BT: Array | None = None


class LoopVariant(nn.Module):
    """The plain loop. A variant overrides the steps that it does differently.

    Parameters that all loops share are made in `setup`, or in one step that is `nn.compact`;
    those that each loop has for itself by `self.per_loop`, in `enter` or `leave`, made
    `nn.compact`. ``loop`` counts from 0. What is drawn is drawn in `start`, which sees all
    rows, and carried in `state.extra`: `self.make_rng("loop")` gives a key, in training one that
    follows from seed and step; when evaluating there is none unless the caller gives one
    (`self.has_rng("loop")`).

    layer_class: the layers of segments that are looped, a subclass of Layer, for a variant that
      changes something inside them (models/layer_kinds.py says when it may). What they make by
      `per_loop` has every loop of every layer for itself, [L, k, …].
    hears_layers: whether its `leave` is given ``state.entered``.
    ends_in_norm: whether each of its loops ends in a norm, so that none follows the last one.
    stacks: how many stacks of k layers there are, of which each loop goes through one, as `runs`
      says.
    """

    config: ModelConfig
    layer_class: ClassVar[type[Layer]] = Layer
    hears_layers: ClassVar[bool] = False
    ends_in_norm: ClassVar[bool] = False
    stacks: ClassVar[int] = 1

    @classmethod
    def runs(cls, config: ModelConfig, loops: int) -> tuple[Run, ...]:
        """What its loops are, in order; UserError for a number of them that it cannot have. More
        than one Run only one of the options in use may have."""
        return (Run(loops),)

    def prepare(self, context: LoopContext) -> LoopContext:
        """Before all else; what is put in ``context.extra`` all loops see."""
        return context

    def start(self, state: LoopState, context: LoopContext) -> LoopState:
        """Before the first loop; ``state.x_BTD`` is the segment's input."""
        return state

    def enter(self, state: LoopState, context: LoopContext, loop: Array) -> LoopState:
        """Before the layers of a loop."""
        return state

    def layer_inputs(
        self, inputs: LayerInputs, state: LoopState, context: LoopContext, loop: Array
    ) -> LayerInputs:
        """What the layers of a loop are given: ``inputs``, with more in ``inputs.extra``."""
        return inputs

    def active(self, state: LoopState) -> Array | None:
        """Tokens that are in the loop, bool [B, T], once it was entered; None: all. They see each
        other there, and nobody sees the others, also later out of a cache. What becomes of the
        others `leave` says."""
        return None

    def leave(self, state: LoopState, context: LoopContext, loop: Array) -> LoopState:
        """After the layers of a loop."""
        return state

    def updated(self, x_BTD: Array, state: LoopState, context: LoopContext) -> Array:
        """Before a loop: of its end, what stands in the place of the stream ``x_BTD`` that it ends
        with, for those who compare them (models/loops/watched.py)."""
        return x_BTD

    def around(self, before: LoopState, after: LoopState) -> LoopState:
        """After loops without gradients: ``after``, in which what these loops leave as it is comes
        from ``before``, for gradients to go around them."""
        return after

    def emit(self, state: LoopState, loop: Array) -> Any:
        """What LoopOutput.emitted has of a loop, arrays [B, …]; None: nothing."""
        return None

    def finish(self, state: LoopState, context: LoopContext) -> LoopState:
        """After the last loop."""
        return state

    def watch(self) -> dict[str, Array]:
        """What is worth watching of the parameters that all loops share, while they are trained: []
        each, by a name that says what it is."""
        return {}

    adds_loss: ClassVar[bool] = False

    @classmethod
    def row_loss(cls, config: ModelConfig, emitted: Any) -> tuple[Array, dict[str, Array]]:
        """Of a variant with `adds_loss`: what it adds to what is minimised, of what it emitted
        [L, B, …] when training, for each row, float32 [B], of which the mean over rows counts; and
        what is reported, the same."""
        raise NotImplementedError

    @classmethod
    def places(cls, loop: int, loops: int, length: int) -> int | None:
        """How many tokens of a row of ``length`` are in a loop when training, if that is the same
        for all rows and known before: then config.loop.routed_tokens may be `gathered`. None: it
        is not."""
        return None

    @classmethod
    def loop_flops(cls, config: ModelConfig) -> int:
        """FLOPs of its matrix products in one loop, for one token."""
        return 0

    @classmethod
    def layer_flops(cls, config: ModelConfig) -> int:
        """The same, in each layer of a loop."""
        return 0

    @classmethod
    def pass_flops(cls, config: ModelConfig) -> int:
        """The same before the first and after the last loop."""
        return 0

    def per_loop(self, name: str, init: Any, shape: tuple[int, ...], *axes: str | None) -> Array:
        """This loop's own parameter of this shape and these logical axes, float32."""
        return per_loop(self, name, init, shape, *axes)


def per_loop(
    module: nn.Module, name: str, init: Any, shape: tuple[int, ...], *axes: str | None
) -> Array:
    """A module's parameter of this shape and these logical axes, float32, that each loop has for
    itself, and each layer, if the module is in one."""
    make = partitioned(init, *axes)
    value = module.variable(
        PER_LOOP, name, lambda: make(module.make_rng(PER_LOOP), shape, jnp.float32)
    )
    return value.value


def rows_of(array_L: Array, loops: int, beyond: str) -> Array:
    """Per-loop parameters [L, …] for another number of loops: the first ones, and beyond the
    trained ones, as ``beyond`` says, the last one again or the mean of all; UserError if it
    refuses."""
    trained = len(array_L)
    if loops <= trained:
        return array_L[:loops]
    if beyond == "refuse":
        raise UserError(
            f"loops={loops}: the model has parameters for {trained} loops; "
            "config.loop.beyond_trained='last' or 'mean' says which the others take"
        )
    more = array_L[-1:] if beyond == "last" else jnp.mean(array_L, axis=0, keepdims=True)
    return jnp.concatenate([array_L, jnp.repeat(more, loops - trained, axis=0)])


def row_at(array_L: Array, loop: Array, beyond: str) -> Array:
    """Row ``loop``, which is data, of ``rows_of``."""
    trained = len(array_L)
    row = jax.lax.dynamic_index_in_dim(
        array_L, jnp.minimum(loop, trained - 1), axis=0, keepdims=False
    )
    return row if beyond == "last" else jnp.where(loop < trained, row, jnp.mean(array_L, axis=0))


def collections(params: Any) -> dict[str, Any]:
    """Flax's collections of a model's parameters, a tree in which those per loop are under
    `per_loop`, for `model.apply`."""
    shared = {name: tree for name, tree in params.items() if name != PER_LOOP}
    return {"params": shared} | {name: params[name] for name in params if name == PER_LOOP}


def parameters(variables: Any) -> Any:
    """The inverse of ``collections``: one tree of what `model.init` made."""
    return dict(variables["params"]) | {k: variables[k] for k in variables if k == PER_LOOP}


def init_keys(key: Array) -> dict[str, Array]:
    """Keys for `model.init`: those of shared parameters do not depend on whether others exist."""
    return {"params": key, PER_LOOP: jax.random.fold_in(key, 1)}
