"""Kinds of loops: one file each, chosen by config.loop.OPTION = NAME; docs/loop_variants.md.

A new one is a file here, a line in VARIANTS, and its name among the choices of its option in
looped_jax/config/keys.py.
"""

from looped_jax.models.config import ModelConfig
from looped_jax.models.loop_plan import Segment
from looped_jax.models.loops.act import AdaptiveTime
from looped_jax.models.loops.base import LoopVariant, Run
from looped_jax.models.loops.embedding import LoopEmbedding
from looped_jax.models.loops.gate import LinearGate
from looped_jax.models.loops.injection_add import AddInput
from looped_jax.models.loops.injection_concat import ConcatInput
from looped_jax.models.loops.injection_decay import DecayInput
from looped_jax.models.loops.injection_unit_add import UnitAddInput
from looped_jax.models.loops.lanes_hyper import HyperLanes
from looped_jax.models.loops.lanes_hyperloop import Hyperloop
from looped_jax.models.loops.last_norm import NormEveryLoop
from looped_jax.models.loops.lora import LoopLora
from looped_jax.models.loops.nest import OneStack, TwoStacks
from looped_jax.models.loops.state import NoiseState, ZeroState
from looped_jax.models.loops.time import LoopTime

# Option of config.loop -> name -> variant; an option's default is the plain loop. They enter a loop
# in this order and leave it in the reverse order; start and finish are in this order.
VARIANTS: dict[str, dict[str, type[LoopVariant]]] = {
    "gate": {"linear": LinearGate, "act": AdaptiveTime},
    "last_norm": {"every_loop": NormEveryLoop},
    "state": {"noise": NoiseState, "zero": ZeroState},
    "nest": {"two_stacks": TwoStacks, "one_stack": OneStack},
    "lanes": {"hyper": HyperLanes, "hyperloop": Hyperloop},
    "injection": {
        "add": AddInput,
        "concat": ConcatInput,
        "decay": DecayInput,
        "unit_add": UnitAddInput,
    },
    "per_loop": {"embedding": LoopEmbedding, "time": LoopTime, "lora": LoopLora},
}


def runs_of(config: ModelConfig, segment: Segment) -> tuple[Run, ...]:
    """What the loops of a segment are, in order; UserError for a number of them that its kind of
    loop cannot have."""
    plain = (Run(segment.loops),)
    if segment.trained_loops == 1:
        return plain
    asked = {VARIANTS[option][name].runs(config, segment.loops) for option, name in config.loop}
    # Only one option may have loops of several kinds.
    (runs,) = asked - {plain} or {plain}
    return runs
