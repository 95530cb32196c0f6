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
from looped_jax.models.loops.messages import BlockMessages
from looped_jax.models.loops.nest import OneStack, TwoStacks
from looped_jax.models.loops.routing_expert import ExpertChoice
from looped_jax.models.loops.routing_token import TokenChoice
from looped_jax.models.loops.state import NoiseState, ZeroState
from looped_jax.models.loops.step import LoopStep
from looped_jax.models.loops.time import LoopTime

# Option of config.loop -> name -> variant; an option's default is the plain loop. They enter a loop
# in this order and leave it in the reverse order; start and finish are in this order.
VARIANTS: dict[str, dict[str, type[LoopVariant]]] = {
    "routing": {"expert_choice": ExpertChoice, "token_choice": TokenChoice},
    "gate": {"linear": LinearGate, "act": AdaptiveTime},
    "messages": {"blocks": BlockMessages},
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
    "per_loop": {"embedding": LoopEmbedding, "time": LoopTime, "lora": LoopLora, "step": LoopStep},
}


def runs_of(config: ModelConfig, segment: Segment) -> tuple[Run, ...]:
    """What the loops of a segment are, in order; UserError for a number of them that its kind of
    loop cannot have."""
    plain = (Run(segment.loops),)
    if segment.trained_loops == 1:
        return plain
    asked = {variant.runs(config, segment.loops) for variant in chosen(config).values()}
    # Only one option may have loops of several kinds.
    (runs,) = asked - {plain} or {plain}
    return runs


def chosen(config: ModelConfig) -> dict[str, type[LoopVariant]]:
    """The variants of a model, by option, in the order of VARIANTS."""
    names = dict(config.loop)
    return {option: of[names[option]] for option, of in VARIANTS.items() if option in names}


def places_in(config: ModelConfig, loop: int, loops: int, length: int) -> int:
    """Tokens of a row of ``length`` whose work a training step does in a loop: all, unless
    config.routed_tokens says that only those which are in it are gathered."""
    if config.routed_tokens == "masked":
        return length
    said = [variant.places(loop, loops, length) for variant in chosen(config).values()]
    return min((count for count in said if count is not None), default=length)
