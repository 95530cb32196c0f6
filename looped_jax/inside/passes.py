"""One pass of a model over rows of tokens, with what it leaves behind of every loop and layer.

Everything comes out of the pass that evaluation runs, nothing is computed a second time: the
streams after layers and the weights of attention are left behind by the modules themselves
(`show` in models/execution.py), where they are asked for. Shapes in names as in models/layers.py;
L loops, k layers.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from looped_jax.errors import UserError
from looped_jax.inside.interventions import Change, Patch, intervention, loops_of
from looped_jax.models.config import ModelConfig
from looped_jax.models.execution import SHOWN
from looped_jax.models.layers import Array
from looped_jax.models.loops import runs_of
from looped_jax.models.loops.segment import Wanted
from looped_jax.models.transformer import LoopedTransformer, forward, logits


class Seen(struct.PyTreeNode):
    """What a pass left behind of one segment. None is what nobody asked for.

    logits_BTV: float32, of the whole model.
    states_LBTD: the stream after every loop.
    layers_LkBTD: the stream after every layer of every loop.
    weights_LkBHTS: what each token takes of each in attention, float32.
    """

    logits_BTV: Array | None = None
    states_LBTD: Array | None = None
    layers_LkBTD: Array | None = None
    weights_LkBHTS: Array | None = None


def watched_segment(config: ModelConfig, segment: int | None) -> int:
    """The number of the segment that is looked into: the looped one, or the first, unless it is
    said. UserError for one that is not there."""
    count = len(config.plan.segments)
    if segment is None:
        return config.plan.looped[0] if config.plan.looped else 0
    if not 0 <= segment < count:
        raise UserError(f"segment={segment}: plan {config.plan} has segments 0 to {count - 1}")
    return segment


def is_looped(config: ModelConfig, segment: int) -> bool:
    """Whether a segment was trained with several loops."""
    return segment in config.plan.looped


def check_shown(config: ModelConfig, segment: int) -> None:
    """UserError where layers are not in one scan over the loops: of these nothing is shown."""
    if len(runs_of(config, config.plan.segments[segment])) > 1:
        raise UserError(
            "layers and attention are shown of loops that are all alike; those of config.loop.nest "
            "go through several stacks (states of its loops can be seen)"
        )


def look(
    model: LoopedTransformer,
    params: Any,
    tokens_BT: Array,
    segment_ids_BT: Array,
    *,
    segment: int,
    loops: int | None = None,
    states: bool = False,
    layers: bool = False,
    weights: bool = False,
    says: bool = False,
    changes: tuple[Change, ...] = (),
    patches: tuple[Patch, ...] = (),
) -> Seen:
    """A pass with what is asked for of ``segment``; ``says``: the logits. ``changes`` and
    ``patches``: see inside/interventions.py."""
    asked: dict[str, Any] = {"loops": loops_of(changes, loops), "wanted": Wanted(states=states)}
    asked["intervention"] = intervention(changes, patches)
    shown: Any = {}
    if layers or weights:
        asked["mutable"] = [SHOWN]
    found: Any = forward(model, params, tokens_BT, segment_ids_BT, **asked)
    if layers or weights:
        found, variables = found
        shown = variables[SHOWN][f"segment_{segment}"]["layers"]
    return Seen(
        # Without the ids that only pad the vocabulary.
        logits_BTV=logits(model.config, found)[..., : model.config.ids_in_use or None]
        if says
        else None,
        states_LBTD=found.segments[segment].x_BTD.astype(jnp.float32) if states else None,
        layers_LkBTD=shown["stream"].astype(jnp.float32) if layers else None,
        weights_LkBHTS=shown["layer"]["attention"]["weights"] if weights else None,
    )


jitted_look = jax.jit(
    look,
    static_argnums=0,
    static_argnames=("segment", "loops", "states", "layers", "weights", "says", "changes"),
)
