"""Learning-rate schedules: linear warm-up, then cosine, constant, inverse square root or stable and
then decaying (WSD)."""

from typing import Any

import jax.numpy as jnp
import optax
from ml_collections import ConfigDict


def learning_rate(optimizer: ConfigDict, steps: int) -> optax.Schedule:
    """The learning rate as a function of the number of updates already made.

    Update s (from 1) of the first W = warmup_steps has peak * s / W, so the first one moves the
    parameters already. After that:
      cosine    from the peak towards final_fraction * peak, which the update after the last would
                have: with 0 no update is without effect
      constant  the peak
      rsqrt     peak * sqrt(W / s)
      wsd       the peak, until decay_fraction of all updates are left (at most what the warm-up
                leaves); with x from 0 at the last stable one to 1 at the one after the last,
                peak * (1 - (1 - final_fraction) * g(x)), g = x (linear; Hu et al. 2024, arXiv
                2404.06395, who name the three phases) or sqrt(x) (1-sqrt of Haegele et al. 2024,
                arXiv 2405.18392)
    """
    peak, warmup = optimizer.learning_rate, optimizer.warmup_steps
    if optimizer.schedule == "cosine":
        decay_steps = max(1, steps + 1 - max(1, warmup))
        after = optax.cosine_decay_schedule(peak, decay_steps, alpha=optimizer.final_fraction)
    elif optimizer.schedule == "constant":
        after = optax.constant_schedule(peak)
    elif optimizer.schedule == "wsd":
        after = _stable_then_decaying(optimizer, steps)
    else:
        first = max(1, warmup)
        after = lambda count: peak * (first / (first + count)) ** 0.5  # noqa: E731
    if not warmup:
        return after
    rise = optax.linear_schedule(peak / warmup, peak, max(1, warmup - 1))
    # The decay counts from the last update of the warm-up, which has the peak.
    return optax.join_schedules([rise, lambda count: after(count + 1)], [warmup])


def _stable_then_decaying(optimizer: ConfigDict, steps: int) -> optax.Schedule:
    """`wsd` as a function of the updates made since the first one that has the peak."""
    left = max(0, steps - max(1, optimizer.warmup_steps))
    decaying = min(round(optimizer.decay_fraction * steps), left)
    depth, peak = 1.0 - optimizer.final_fraction, optimizer.learning_rate

    def rate(count: Any) -> Any:
        progress = jnp.clip((count - (left - decaying)) / (decaying + 1), 0.0, 1.0)
        if optimizer.decay_form == "sqrt":
            progress = jnp.sqrt(progress)
        return peak * (1.0 - depth * progress)

    return rate
