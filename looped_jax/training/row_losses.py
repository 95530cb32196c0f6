"""What kinds of loops add to what is minimised (LoopVariant.row_loss): means over rows."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from looped_jax.models.config import ModelConfig
from looped_jax.models.loops import chosen
from looped_jax.models.loops.base import LoopOutput


def adding(config: ModelConfig) -> list[str]:
    """The options of config.loop whose variants add a loss."""
    return [option for option, variant in chosen(config).items() if variant.adds_loss]


def with_row_losses(
    config: ModelConfig,
    minimised: jax.Array,
    loss: jax.Array,
    segments: Sequence[LoopOutput],
    row_weight: Any,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Of sums over a batch, with a row counting as ``row_weight`` tokens: what is minimised, with
    what variants add, and what is reported: `loss`, and where they add, `objective` and
    `<option>/…` (of several looped segments, `<option>/segment_<i>/…`)."""
    reported = {"loss": loss}
    for option in adding(config):
        variant, several = chosen(config)[option], len(config.plan.looped) > 1
        for index in config.plan.looped:
            added_B, said = variant.row_loss(config, segments[index].emitted[option])
            minimised = minimised + row_weight * jnp.sum(added_B)
            where = f"{option}/segment_{index}" if several else option
            for name, of_B in said.items():
                reported[f"{where}/{name}"] = row_weight * jnp.sum(of_B)
        reported["objective"] = minimised
    return minimised, reported
