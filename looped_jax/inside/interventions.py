"""Changes inside the loops of a model, to see what depends on what.

Written as text, loops and layers counted from 1, several with blanks between them:

skip:2         loop 2 leaves the stream as it found it
layer:2.1      layer 1 of loop 2 does
order:1,3,2,2  these loops in this order, in place of 1, 2, …, L (skipped, repeated, exchanged)

A state of another prompt in the place of one's own (patching: Vig et al. 2020, Meng et al. 2022,
arXiv 2202.05262, who say what it tells) is a Patch, from Python. All hold for the looped segments;
of a plan without loops layers can be left out.
"""

import dataclasses
import re
from collections.abc import Sequence

import jax.numpy as jnp
from flax import struct

from looped_jax.errors import UserError
from looped_jax.models.config import ModelConfig
from looped_jax.models.layers import Array
from looped_jax.models.loops.base import Intervention


@dataclasses.dataclass(frozen=True)
class Change:
    """skip (a loop), layer (loop and layer) or order (loops); numbers from 0."""

    kind: str
    numbers: tuple[int, ...]

    def __str__(self) -> str:
        numbers = [str(number + 1) for number in self.numbers]
        return f"{self.kind}:{('.' if self.kind == 'layer' else ',').join(numbers)}"


class Patch(struct.PyTreeNode):
    """After loop ``loop`` (from 0) these streams stand at P ``places`` of each row."""

    streams_BPD: Array
    loop: int = struct.field(pytree_node=False)
    places: tuple[int, ...] = struct.field(pytree_node=False)


FORM = {
    "skip": re.compile(r"\d+"),
    "layer": re.compile(r"\d+\.\d+"),
    "order": re.compile(r"\d+(,\d+)*"),
}


def parse(text: str) -> tuple[Change, ...]:
    """Reads changes; UserError says the forms."""
    found = []
    for part in text.split():
        kind, _, numbers = part.partition(":")
        if kind not in FORM or not FORM[kind].fullmatch(numbers):
            raise UserError(
                f"intervention {part!r} is none of skip:LOOP, layer:LOOP.LAYER, order:LOOP,LOOP,… "
                "(counted from 1)"
            )
        found.append(Change(kind, tuple(int(n) - 1 for n in re.split("[.,]", numbers))))
    if not found:
        raise UserError("an intervention is skip:LOOP, layer:LOOP.LAYER or order:LOOP,LOOP,…")
    return tuple(found)


def check(config: ModelConfig, changes: Sequence[Change], loops: int | None) -> None:
    """UserError for a loop or layer that is not there, and for models of which this cannot be
    said: with loops of two speeds, or with tokens that are not in all of them."""
    plan = config.plan
    looped = [plan.segments[index] for index in plan.looped]
    if not looped and any(change.kind != "layer" for change in changes):
        raise UserError(f"plan {plan} has no loops to change, only layers (layer:1.LAYER)")
    for option in ("nest", "routing"):
        if option in dict(config.loop):
            raise UserError(f"interventions are not for config.loop.{option}, whose loops differ")
    if sum(change.kind == "order" for change in changes) > 1:
        raise UserError("there can be one order")
    changed = looped or list(plan.segments)
    there = loops or min(segment.loops for segment in changed)
    layers = min(segment.layers for segment in changed)
    for change in changes:
        if min(change.numbers) < 0:
            raise UserError(f"intervention {change}: loops and layers are counted from 1")
        # An order may go beyond, as --loops may.
        if change.kind != "order" and change.numbers[0] >= there:
            raise UserError(f"intervention {change}: the model goes through {there} loops")
        if change.kind == "layer" and change.numbers[1] >= layers:
            raise UserError(f"intervention {change}: a loop has {layers} layers")


def loops_of(changes: Sequence[Change], loops: int | None) -> int | None:
    """How many loops are gone through."""
    orders = [change.numbers for change in changes if change.kind == "order"]
    return len(orders[0]) if orders else loops


def intervention(changes: Sequence[Change], patches: Sequence[Patch] = ()) -> Intervention | None:
    """What the pass is told; None if nothing is changed."""
    if not changes and not patches:
        return None
    skipped = [change.numbers[0] for change in changes if change.kind == "skip"]
    layers = [change.numbers for change in changes if change.kind == "layer"]
    orders = [change.numbers for change in changes if change.kind == "order"]

    def loop(before_BTD: Array, after_BTD: Array, number: Array) -> Array:
        for one in skipped:
            after_BTD = jnp.where(number == one, before_BTD, after_BTD)
        for patch in patches:
            there = jnp.asarray(patch.places)
            patched = after_BTD.at[:, there].set(patch.streams_BPD.astype(after_BTD.dtype))
            after_BTD = jnp.where(number == patch.loop, patched, after_BTD)
        return after_BTD

    def layer(before_BTD: Array, after_BTD: Array, number: Array, of_loop: Array) -> Array:
        for one, its_layer in layers:
            here = (number == one) & (of_loop == its_layer)
            after_BTD = jnp.where(here, before_BTD, after_BTD)
        return after_BTD

    return Intervention(
        orders[0] if orders else None,
        loop if skipped or patches else None,
        layer if layers else None,
    )
