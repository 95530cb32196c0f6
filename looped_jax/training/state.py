"""The state of a run: all that a checkpoint must hold to go on exactly, data position apart."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct
from jax.sharding import Mesh

from looped_jax.models.transformer import LoopedTransformer
from looped_jax.parallel.mesh import parameter_shardings, replicated, state_shardings


class TrainState(struct.PyTreeNode):
    """Parameters and what updates them: arrays, or in a StateLayout their shapes or shardings."""

    step: Any  # int32 [], updates made.
    params: Any
    optimizer: Any
    key: Any  # uint32 [2]; a stochastic layer draws from fold_in(key, step).


@dataclasses.dataclass(frozen=True)
class StateLayout:
    """Shapes, dtypes and shardings of a TrainState, without its values."""

    abstract: TrainState  # Of ShapeDtypeStruct with sharding.
    shardings: TrainState

    @property
    def parameter_count(self) -> int:
        """Number of trained scalars."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.abstract.params))


def _fresh(model: LoopedTransformer, optimizer: optax.GradientTransformation, seed: int) -> Any:
    key, init_key = jax.random.split(jax.random.PRNGKey(seed))
    # Parameter shapes do not depend on the row length: two tokens are enough to trace.
    boxed = model.init(init_key, jnp.zeros((1, 2), jnp.int32))["params"]
    params = nn.unbox(boxed)
    state = TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), key)
    return state, boxed


def state_layout(
    model: LoopedTransformer, optimizer: optax.GradientTransformation, mesh: Mesh, rules: Any
) -> StateLayout:
    """Computes shapes and shardings; nothing is allocated. UserError as parameter_shardings."""
    state, boxed = jax.eval_shape(lambda: _fresh(model, optimizer, 0))
    params = parameter_shardings(boxed, mesh, rules)
    shardings = TrainState(
        step=replicated(mesh),
        params=params,
        optimizer=state_shardings(state.optimizer, state.params, params, mesh),
        key=replicated(mesh),
    )
    abstract = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        state,
        shardings,
    )
    return StateLayout(abstract, shardings)


def init_state(
    model: LoopedTransformer,
    optimizer: optax.GradientTransformation,
    seed: int,
    layout: StateLayout,
) -> TrainState:
    """A fresh state, each device computing its own shards; the values follow from ``seed``."""
    return jax.jit(lambda: _fresh(model, optimizer, seed)[0], out_shardings=layout.shardings)()
