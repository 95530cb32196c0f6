"""config.loop_loss.kind = shortcut: every step also takes a trajectory of fewer
and longer ones too, which learns to end where the plan's L loops do:

    CE_long + a CE_short + b mean((stop_gradient(x_long) - x_short)^2),   a = b = 0.1,

x being what the output projection is applied to, and the mean over weighted tokens and D.
LoopFormer (arXiv 2602.11451), as its code has it (armenjeddi/loopformer, train.py and utils.py):
the short one has S ~ U{1 … L - 1} steps, whose sizes are drawn one after another, each uniformly
from {1/L, 2/L, …} so that at least 1/L is left for each that follows; the last is what is left.
There every part of a batch has a trajectory of its own, here one serves the step.
"""

from typing import Any

import jax
import jax.numpy as jnp

from looped_jax.models.loss import loss_sums
from looped_jax.models.transformer import LoopedTransformer, batch_forward

Array = jax.Array
# Folded into a step's key: neither a part of a batch nor loop counts have this number.
_STREAM = (1 << 30) + 1
WEIGHTS = (0.1, 0.1)


def short_trajectory(key: Array, loops: int) -> Array:
    """Sizes of the steps in units of 1/L, int32 [L - 1], 0 behind the last; ``key`` is the training
    step's own, which follows from seed and step."""
    of_count, of_sizes = jax.random.split(jax.random.fold_in(key, _STREAM))
    steps = jax.random.randint(of_count, (), 1, loops)

    def one(left: Array, number: Array) -> tuple[Array, Array]:
        behind = steps - 1 - number
        drawn = jax.random.randint(jax.random.fold_in(of_sizes, number), (), 1, left - behind + 1)
        size = jnp.where(behind > 0, drawn, left)
        return left - size, size

    return jax.lax.scan(one, jnp.int32(loops), jnp.arange(loops - 1))[1]


def mean_steps(loops: int) -> float:
    """Of the short trajectories."""
    return loops / 2


def short_sums(
    model: LoopedTransformer,
    params: Any,
    batch: dict[str, Array],
    long_BTD: Array,
    key: Array | None,
) -> tuple[Array, Array]:
    """Sums over weighted tokens of a pass along batch["trajectory"], float32 [B, L - 1]: its
    cross-entropy, and the distance of its states from those of the long one."""
    config, weights_BT = model.config, batch["loss_weights"]
    output = batch_forward(model, params, batch, key=key, sizes_BS=batch["trajectory"])
    xent, _ = loss_sums(config, output.x_BTD, output.kernel_VD, batch["targets"], weights_BT)
    aim_BTD = jax.lax.stop_gradient(long_BTD).astype(jnp.float32)
    apart_BTD = output.x_BTD.astype(jnp.float32) - aim_BTD
    return xent, jnp.sum(weights_BT * jnp.mean(apart_BTD**2, axis=-1))
