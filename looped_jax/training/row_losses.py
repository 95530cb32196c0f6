"""What kinds of loops add to what is minimised (LoopVariant.row_loss): means over rows."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from looped_jax.models.config import ModelConfig
from looped_jax.models.loops import chosen
from looped_jax.models.loops.base import LoopOutput


def adding(config: ModelConfig) -> list[str]:
    """The options of config.loop whose variants add a loss: of the plan's one looped segment."""
    variants = chosen(config) if config.plan.looped else {}
    return [option for option, variant in variants.items() if variant.adds_loss]


def with_row_losses(
    config: ModelConfig,
    minimised: jax.Array,
    loss: jax.Array,
    segments: Sequence[LoopOutput],
    row_weight: Any,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Of sums over a batch, with a row counting as ``row_weight`` tokens: what is minimised, with
    what variants add, and what is reported: `loss`, and where they add, `objective` and
    `<option>/…`."""
    reported = {"loss": loss}
    for option in adding(config):
        (index,) = config.plan.looped
        added_B, said = chosen(config)[option].row_loss(config, segments[index].emitted[option])
        minimised = minimised + row_weight * jnp.sum(added_B)
        means = {f"{option}/{name}": row_weight * jnp.sum(of_B) for name, of_B in said.items()}
        reported |= {**means, "objective": minimised}
    return minimised, reported
