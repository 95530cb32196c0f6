"""Learning-rate schedules: linear warm-up, then cosine, constant or inverse square root."""

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
    """
    peak, warmup = optimizer.learning_rate, optimizer.warmup_steps
    if optimizer.schedule == "cosine":
        decay_steps = max(1, steps + 1 - max(1, warmup))
        after = optax.cosine_decay_schedule(peak, decay_steps, alpha=optimizer.final_fraction)
    elif optimizer.schedule == "constant":
        after = optax.constant_schedule(peak)
    else:
        first = max(1, warmup)
        after = lambda count: peak * (first / (first + count)) ** 0.5  # noqa: E731
    if not warmup:
        return after
    rise = optax.linear_schedule(peak / warmup, peak, max(1, warmup - 1))
    # The decay counts from the last update of the warm-up, which has the peak.
    return optax.join_schedules([rise, lambda count: after(count + 1)], [warmup])
