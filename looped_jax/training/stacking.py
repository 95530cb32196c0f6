"""Training in stages of growing depth (config.stacking): MIDAS, arXiv 2409.19044.

From that paper: depth grows by one block of `block` layers per stage; the new block is a copy of
the middle one, optimizer state included; of N stages the i-th gets a share of the steps
proportional to i^power. Ours: with an even number of blocks the middle is the lower of the two;
learning rate and data run on over the growth as if nothing had happened.

The checkpoint of the step at which a stage ends still has that stage's depth. It is grown when
training goes on from it, in the same process or after a restart: one way, so both are equal to
the last bit.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from looped_jax.errors import UserError
from looped_jax.models.loop_plan import LoopPlan
from looped_jax.training.state import StateLayout, TrainState


@dataclasses.dataclass(frozen=True)
class Stage:
    """Steps ``begin`` + 1 to ``end``, at the depth of ``config``."""

    begin: int
    end: int
    config: ConfigDict
    block: int = 0  # Layers added where the stage begins.


def stages(config: ConfigDict) -> tuple[Stage, ...]:
    """The stages of a run, one if it is not stacked. UserError if the plan cannot be stacked."""
    steps, block = config.train.steps, config.stacking.block
    if not block:
        return (Stage(0, steps, config),)
    plan = LoopPlan.parse(config.model.plan)
    if len(plan.segments) > 1 or plan.segments[0].loops > 1:
        raise UserError(
            f"config.stacking.block={block}: plan {plan} is not one untied stack, e.g. "
            f"config.model.plan={plan.effective_depth}x1"
        )
    count = plan.equal_blocks(block, "stacking.block")
    if config.regularizer.block:
        raise UserError("config.stacking and config.regularizer cannot be used together")
    if config.train.start_from:
        raise UserError("config.stacking begins with a shallow model: not with train.start_from")
    if steps < count:
        raise UserError(f"config.train.steps={steps} is less than the {count} stages of stacking")
    shares = [i**config.stacking.power for i in range(1, count + 1)]
    ends = [max(i, round(steps * sum(shares[:i]) / sum(shares))) for i in range(1, count)] + [steps]
    return tuple(
        Stage(
            begin,
            end,
            config if i == count - 1 else _at_depth(config, block * (i + 1)),
            block if i else 0,
        )
        for i, (begin, end) in enumerate(zip([0, *ends], ends, strict=False))
    )


def _at_depth(config: ConfigDict, layers: int) -> ConfigDict:
    shallow = ConfigDict(config.to_dict())
    shallow.model.plan = f"{layers}x1"
    shallow.stacking.block = 0
    return shallow.lock()


def stage_at(config: ConfigDict, step: int) -> Stage:
    """The stage that made the update number ``step``, whose depth its checkpoint has."""
    *others, last = stages(config)
    return next((stage for stage in others if step <= stage.end), last)


def duplicated_middle(layers: int, block: int) -> np.ndarray:
    """Which old layer each layer of the grown stack is a copy of: [layers + block] indices.

    The stack is N = layers / block blocks B_1 … B_N; the grown one is B_1 … B_m, B_m … B_N with
    m = ceil(N / 2).
    """
    if block < 1 or layers % block:
        raise ValueError(f"blocks of {block} do not divide {layers} layers")
    middle = (layers // block + 1) // 2
    old = np.arange(layers)
    return np.concatenate([old[: middle * block], old[(middle - 1) * block :]])


def grow(state: TrainState, before: StateLayout, after: StateLayout, block: int) -> TrainState:
    """The state with its middle block doubled: parameters and all that the optimizer keeps of
    them."""
    old = before.abstract.params["segment_0"]["layers"]["layer"]
    layers = jax.tree.leaves(old)[0].shape[0]
    index = jnp.asarray(duplicated_middle(layers, block))

    def grown(leaf: Any, wanted: Any) -> Any:
        return leaf if leaf.shape == wanted.shape else jnp.take(leaf, index, axis=0)

    # Donation would save memory only where shapes agree.
    return jax.jit(
        lambda whole: jax.tree.map(grown, whole, after.abstract), out_shardings=after.shardings
    )(state)
