"""The average of the parameters over updates (config.optimizer.ema), which is evaluated in their
place.

After update t it is the exponential moving average without its bias, as optax.ema(decay) has it:

    a_t = sum_{i=1..t} decay^(t-i) p_i / sum_{i=1..t} decay^(t-i)
        = a_{t-1} + (1 - decay) / (1 - decay^t) (p_t - a_{t-1}),

a mean of the parameters p_i after each update: the initial ones have no part in it. It is kept in
the second form, ready for use, and stays exactly where a parameter does.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax


def fresh_average(params: Any) -> Any:
    """The average before any update: a copy of the parameters."""
    return jax.tree.map(jnp.copy, params)


def averaged(average: Any, params: Any, updates: jax.Array, decay: float) -> Any:
    """a_t from a_{t-1} and p_t; t = ``updates``, from 1."""
    # 1 - decay^t, also where decay is so near 1 that float32 could not tell.
    past = -jnp.expm1(updates * math.log(decay))
    return optax.tree.add_scale(average, (1.0 - decay) / past, optax.tree.sub(params, average))
