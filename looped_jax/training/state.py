"""The state of a run: all that a checkpoint must hold to go on exactly, data position apart."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from looped_jax.models.loops.base import init_keys, parameters
from looped_jax.models.matrices import layered, layered_shape
from looped_jax.models.transformer import LoopedTransformer
from looped_jax.parallel.mesh import parameter_shardings, replicated
from looped_jax.training.average import fresh_average


class TrainState(struct.PyTreeNode):
    """Parameters and what updates them: arrays, or in a StateLayout their shapes or shardings."""

    step: Any  # int32 [], updates made.
    params: Any
    optimizer: Any
    average: Any = None  # Of the parameters, with config.optimizer.ema.

    @property
    def evaluated(self) -> Any:
        """The parameters that stand for the model."""
        return self.params if self.average is None else self.average

    def parts(self) -> dict[str, Any]:
        """Name -> tree of what there is of it, as a checkpoint holds it."""
        return {name: part for name, part in vars(self).items() if part is not None}


@dataclasses.dataclass(frozen=True)
class StateLayout:
    """Shapes, dtypes and shardings of a TrainState, without its values."""

    abstract: TrainState  # Of ShapeDtypeStruct with sharding.
    shardings: TrainState

    @property
    def parameter_count(self) -> int:
        """Number of scalars of the model."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.abstract.params))


def first_state(
    params: Any, optimizer: optax.GradientTransformation, averages: bool = False
) -> TrainState:
    """The state before any update of these parameters."""
    average = fresh_average(params) if averages else None
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), average)


def _boxed(model: LoopedTransformer, seed: int) -> Any:
    """Fresh parameters with their logical axis names."""
    _, key = jax.random.split(jax.random.PRNGKey(seed))
    # Parameter shapes do not depend on the row length: two tokens are enough to trace.
    return parameters(model.init(init_keys(key), jnp.zeros((1, 2), jnp.int32)))


def fresh_parameters(model: LoopedTransformer, seed: int) -> Any:
    """Those that training begins with; they follow from ``seed``."""
    return nn.unbox(_boxed(model, seed))


@functools.lru_cache(maxsize=4)
def _abstract(model: LoopedTransformer) -> Any:
    """Shapes of its parameters with their logical axis names. Kept, as tracing takes seconds where
    a model has many kinds of layers, and a job asks several times."""
    return jax.eval_shape(lambda: _boxed(model, 0))


def parameter_axes(model: LoopedTransformer) -> Any:
    """The logical axis names of each parameter: a tree of PartitionSpec."""
    return nn.get_partition_spec(_abstract(model))


def parameter_shapes(model: LoopedTransformer) -> Any:
    """Shapes and dtypes of its parameters."""
    return nn.unbox(_abstract(model))


def state_layout(
    model: LoopedTransformer,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    rules: Any,
    averages: bool = False,
) -> StateLayout:
    """Computes shapes and shardings; nothing is allocated. UserError as parameter_shardings.

    ``averages``: with an average of the parameters.
    """
    shapes = parameter_shapes(model)
    state = jax.eval_shape(lambda p: first_state(p, optimizer, averages), shapes)
    params = parameter_shardings(_abstract(model), mesh, rules)
    shardings = TrainState(
        step=replicated(mesh),
        params=params,
        optimizer=_optimizer_shardings(
            state.optimizer, state.params, parameter_axes(model), params, mesh
        ),
        average=params if averages else None,
    )
    abstract = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        state,
        shardings,
    )
    return StateLayout(abstract, shardings)


def _optimizer_shardings(
    optimizer_state: Any, params: Any, axes: Any, shardings: Any, mesh: Mesh
) -> Any:
    """Shardings for an optimizer's state from those of the parameters it is about.

    A moment has its parameter's shape and sharding, as it is stored or layer by layer
    (models/matrices.py). A factored moment (Adafactor) lacks one dimension and keeps the sharding
    of the others. Anything else (counts) is replicated.
    """
    forms: dict[str, list[tuple[tuple[int, ...], tuple[Any, ...]]]] = {}
    leaves = jax.tree_util.tree_leaves_with_path(params)
    tree: Any = jax.tree.structure(params)
    of_leaves = (tree.flatten_up_to(t) for t in (axes, shardings))
    for (path, array), names, sharding in zip(leaves, *of_leaves, strict=True):
        spec = tuple(sharding.spec) + (None,) * (array.ndim - len(sharding.spec))
        names = tuple(names)
        # Of merged axes the first one is split: it is the major one.
        layered_spec = layered(names, spec, lambda first, _: first)
        forms[jax.tree_util.keystr(path)] = [
            (array.shape, spec),
            (layered_shape(names, array.shape), layered_spec),
        ]

    def of(path: Any, array: Any) -> NamedSharding:
        name = jax.tree_util.keystr(path)
        # The longest: one parameter's path may end another's.
        of_parameter = forms.get(max((k for k in forms if k in name), key=len, default=""), [])
        for shape, spec in of_parameter:
            if array.shape == shape:
                return NamedSharding(mesh, PartitionSpec(*spec))
            for axis in range(1, len(shape)):
                if array.shape == shape[:axis] + shape[axis + 1 :]:
                    return NamedSharding(mesh, PartitionSpec(*spec[:axis], *spec[axis + 1 :]))
        return replicated(mesh)

    return jax.tree_util.tree_map_with_path(of, optimizer_state)


def jitted_init(
    model: LoopedTransformer,
    optimizer: optax.GradientTransformation,
    seed: int,
    layout: StateLayout,
) -> Any:
    """What makes a fresh state, each device computing its own shards: a jitted function of nothing.
    The values follow from ``seed``."""
    averages = layout.abstract.average is not None

    def make() -> TrainState:
        return first_state(fresh_parameters(model, seed), optimizer, averages)

    return jax.jit(make, out_shardings=layout.shardings)


def init_state(
    model: LoopedTransformer,
    optimizer: optax.GradientTransformation,
    seed: int,
    layout: StateLayout,
) -> TrainState:
    """A fresh state, made by jitted_init."""
    state: TrainState = jitted_init(model, optimizer, seed, layout)()
    return state
