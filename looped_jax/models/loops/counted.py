"""A pass whose number of loops is data, compiled once for all numbers.

Of a row's r loops the first max(r - m, 0) run in a `while` that nothing is differentiated through,
and the last min(r, m) among m steps of a `scan`, of which the rest leave the row as it is:
truncated backpropagation through time, as Huginn trains (Geiping et al. 2025, arXiv 2502.05171,
section 3.3) and, with a count for each row, Parcae (arXiv 2604.12946). A row with fewer loops than
others waits for them.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from looped_jax.models.layers import Array
from looped_jax.models.loops.base import Counts, LoopState

# (what is differentiated, state, number of the loop) -> state.
Step = Callable[[Any, LoopState, Array], LoopState]


def counted_loops(
    step: Step, learned: Any, state: LoopState, counts: Counts, unroll: bool
) -> LoopState:
    """``step`` as often as ``counts`` say, ``counts.with_gradient`` times at most with gradients to
    ``learned``, which is all that they go to but for the state to begin with.

    The loop's number is that of a row with the largest count; see Counts.number_B.
    """

    def where(active_B: Array, new: Array, old: Array) -> Array:
        return jnp.where(active_B.reshape(-1, *(1,) * (new.ndim - 1)), new, old)

    def kept(active_B: Array, new: LoopState, old: LoopState) -> LoopState:
        return jax.tree.map(lambda a, b: where(active_B, a, b), new, old)

    before_B, before = counts.before
    constants = jax.lax.stop_gradient(learned)

    def more(carry: tuple[Array, LoopState]) -> Array:
        return carry[0] < before

    def one_without(carry: tuple[Array, LoopState]) -> tuple[Array, LoopState]:
        loop, state = carry
        return loop + 1, kept(loop < before_B, step(constants, state, loop), state)

    def one_with(state: LoopState, i: Array) -> tuple[LoopState, None]:
        active_B = i < counts.loops_B - before_B
        return kept(active_B, step(learned, state, before + i), state), None

    start = (jnp.zeros((), jnp.int32), jax.lax.stop_gradient(state))
    _, advanced = jax.lax.while_loop(more, one_without, start)
    # A row that has not gone through the `while` keeps the gradient to what it began with.
    state = kept(before_B > 0, advanced, state)
    numbers = jnp.arange(counts.with_gradient)
    return jax.lax.scan(one_with, state, numbers, unroll=len(numbers) if unroll else 1)[0]
