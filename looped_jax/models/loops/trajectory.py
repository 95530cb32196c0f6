"""A pass along a trajectory: loops that are steps of given sizes, in time from 0 to 1 (LoopFormer,
arXiv 2602.11451, and its code, armenjeddi/loopformer). Sizes and number of steps are data: one
compilation for all trajectories of at most so many steps.

Whoever asks for the time of a loop (models/loops/time.py) sees the trajectory; for all else it is a
pass of so many loops. Steps behind its last are not computed. Of each step what it began with is
kept for the backward pass, as with remat=loop: a branch that keeps more would keep a copy of the
weights for every step.
"""

from typing import Any

import jax
import jax.numpy as jnp

from looped_jax.models.layers import Array
from looped_jax.models.loops.base import LoopState, Trajectory
from looped_jax.models.loops.counted import Step


def loops_along(
    step: Step, learned: Any, state: LoopState, trajectory: Trajectory, unroll: bool
) -> LoopState:
    """``step`` for each of its steps, with gradients to ``learned`` and ``state``."""

    def one(state: LoopState, loop: Array) -> tuple[LoopState, None]:
        made = jax.lax.cond(
            loop < trajectory.steps, lambda s: step(learned, s, loop), lambda s: s, state
        )
        return made, None

    most = trajectory.sizes_BS.shape[1]
    return jax.lax.scan(
        jax.checkpoint(one, prevent_cse=unroll),
        state,
        jnp.arange(most),
        unroll=most if unroll else 1,
    )[0]
