"""What does not go together, in one table: a value of a key, what another must be with it, and why.

Here is what is said by names of values alone. What numbers or the plan exclude is checked where
they are used (models/loop_plan.py, training/loop_counts.py, training/loop_losses.py), and kinds of
loops that change what is inside layers exclude each other by doing so (models/layer_kinds.py).
"""

import dataclasses
import itertools
from typing import Any

from ml_collections import ConfigDict

from looped_jax.config.config_dict import get_key
from looped_jax.config.keys import KEYS
from looped_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Rule:
    """Where ``key`` is one of ``values``, the ``other`` key must be one of ``needed``."""

    key: str
    values: tuple[Any, ...]
    because: str
    other: str
    needed: tuple[Any, ...]

    def refuses(self, config: ConfigDict) -> str | None:
        """One line, if the config is against it."""
        value, other = get_key(config, self.key), get_key(config, self.other)
        if value not in self.values or other in self.needed:
            return None
        return f"config.{self.key}={value!r} {self.because}: it needs {self.wanted}, not {other!r}"

    @property
    def wanted(self) -> str:
        """What the other key must be, as a line says it."""
        return f"config.{self.other}={' or '.join(map(repr, self.needed))}"


def _but(key: str, *values: Any) -> tuple[Any, ...]:
    """The choices of a key, but these."""
    return tuple(choice for choice in KEYS[key].choices if choice not in values)


def _rules(
    key: str, values: tuple[Any, ...], because: str, **needed: tuple[Any, ...]
) -> tuple[Rule, ...]:
    """A rule for each other key, written section__name."""
    return tuple(
        Rule(key, values, because, other.replace("__", "."), choices)
        for other, choices in needed.items()
    )


RULES: tuple[Rule, ...] = (
    *_rules(
        "loop.state",
        _but("loop.state", "input"),
        "forgets a segment's input",
        loop__injection=_but("loop.injection", "none"),
    ),
    *_rules(
        "loop.messages",
        _but("loop.messages", "none"),
        "starts every loop from the segment's input",
        loop__state=("input",),
        loop__injection=("none",),
        loop__lanes=("one",),
        loop__nest=("none",),
        loop__routing=("none",),
    ),
    *_rules(
        "loop.lanes",
        _but("loop.lanes", "one"),
        "has parameters of every loop that full backpropagation only trains",
        counts__gradient_loops=(0,),
    ),
    *_rules(
        "loop.nest",
        _but("loop.nest", "none"),
        "has loops of two kinds, each of which ends one of two states, as many as the plan says",
        loop__gate=("none",),
        loop__lanes=("one",),
        loop__last_norm=("once",),
        loop_loss__kind=("last",),
        counts__distribution=("fixed",),
        counts__curriculum=("none",),
        counts__gradient_loops=(0,),
    ),
    *_rules(
        "loop.nest",
        ("two_stacks",),
        "has no stack of layers that is in all loops",
        loop__per_loop=_but("loop.per_loop", "lora"),
    ),
    *_rules(
        "loop.routing",
        _but("loop.routing", "none"),
        "has tokens that are not in all loops",
        loop__gate=("none",),
        loop__lanes=("one",),
        loop__last_norm=("once",),
        loop__nest=("none",),
        loop__state=("input",),
        loop_loss__kind=("last",),
        counts__distribution=("fixed",),
        counts__curriculum=("none",),
        counts__gradient_loops=(0,),
    ),
    *_rules(
        "loop.routed_tokens",
        ("gathered",),
        "takes a fixed number of tokens",
        loop__routing=("expert_choice",),
    ),
    *(
        rule
        for key, plain in (("loop.norms", "pre"), ("loop.last_norm", "once"), ("loop.nest", "none"))
        for rule in _rules(
            key, _but(key, plain), "is about norms", model__norm=_but("model.norm", "none")
        )
    ),
    *_rules(
        "model.layer",
        ("ngpt",),
        "is made of parts of its own",
        model__norm=("l2",),
        model__qk_norm=(True,),
        model__mlp=("swiglu",),
        model__attention_gate=(False,),
        loop__norms=("pre",),
    ),
)


def check_combinations(config: ConfigDict) -> None:
    """UserError naming the first two keys whose values exclude each other."""
    for rule in RULES:
        if said := rule.refuses(config):
            raise UserError(said)


def markdown() -> str:
    """The table, for docs/config.md."""
    lines = ["| key | | needs |", "|---|---|---|"]
    for (key, values, because), rules in itertools.groupby(
        RULES, lambda rule: (rule.key, rule.values, rule.because)
    ):
        needed = "; ".join(
            f"`{rule.other}` = {' or '.join(map(str, rule.needed))}" for rule in rules
        )
        lines.append(f"| `{key}` = {' or '.join(values)} | {because} | {needed} |")
    return "\n".join(lines)
