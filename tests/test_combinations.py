"""Every two options that are not refused work together; the table of those that are is sound."""

import functools
import itertools
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
import pytest
from helpers import random_rows, small_config

from looped_jax.config import KEYS, set_key, validate
from looped_jax.config.combinations import RULES, Rule
from looped_jax.errors import UserError
from looped_jax.inference.cache import decode, prefill
from looped_jax.models.config import ModelConfig
from looped_jax.models.layer_kinds import layer_class
from looped_jax.models.loops import chosen
from looped_jax.training.job import Job, make_job
from looped_jax.training.loop_counts import LoopCounts
from looped_jax.training.loop_losses import LoopLosses
from looped_jax.training.train_step import loss_and_grads

NGPT = {"model.layer": "ngpt", "model.norm": "l2", "model.qk_norm": True, "model.mlp": "swiglu"}
OPTIONS: list[dict[str, Any]] = [
    *(
        {f"loop.{option}": value}
        for option in (
            *("injection", "per_loop", "lanes", "gate", "nest", "messages", "routing", "norms"),
            "last_norm",
        )
        for value in KEYS[f"loop.{option}"].choices
        if value != KEYS[f"loop.{option}"].default
    ),
    *(
        {"loop.state": state, "loop.injection": injection}
        for state, injection in (("zero", "add"), ("noise", "concat"), ("noise", "decay"))
    ),
    {"loop.routing": "expert_choice", "loop.routed_tokens": "gathered"},
    NGPT,
    {"model.norm": "l2"},
    {"model.attention_gate": True},
    {"model.norm": "none"},
    {"counts.distribution": "poisson", "counts.gradient_loops": 1},
    {"loop_loss.kind": "weighted"},
    {"loop_loss.kind": "expected", "loop.gate": "linear"},
    {"loop_loss.kind": "act", "loop.gate": "act"},
    {"loop_loss.kind": "shortcut", "loop.per_loop": "time"},
]


SMALL = dict(
    **dict(model__plan="1x2", model__unroll="none", model__vocab_size=16, model__num_heads=2),
    **dict(loop__low_loops=1, loop__message_rank=2, mesh__data=1),
)


def config_of(*options: dict[str, Any]) -> Any:
    """None where two of them set a key to different values."""
    config = small_config(**SMALL)
    given: dict[str, Any] = {}
    for key, value in itertools.chain(*(option.items() for option in options)):
        if given.setdefault(key, value) != value:
            return None
    with config.unlocked():
        for key, value in given.items():
            set_key(config, key, value)
    return config


def trace(job: Job) -> None:
    """A training step; where tokens are decoded, a prompt and one more token."""
    rows = random_rows(rows=4, length=8, vocab=10)
    if job.counts is not None:
        rows["loops"] = np.int32([1, 2, 3, 4])
    if job.losses is not None and job.losses.has_short_trajectory:
        rows["trajectory"] = np.ones((4, 1), np.float32)
    params, model = job.layout.abstract.params, job.model
    jax.eval_shape(lambda p: loss_and_grads(model, p, rows, losses=job.losses), params)

    def decoded(p: Any) -> Any:
        prompts, lengths = rows["tokens"][:, :6], np.full(4, 6, np.int32)
        found, cache = prefill(model, p, prompts, lengths, 7)
        return decode(model, p, found.argmax(-1).astype(np.int32), cache)

    jax.eval_shape(decoded, params)


@functools.cache
def refused(*indices: int) -> bool:
    """By the config alone, before anything is traced."""
    config = config_of(*of(indices))
    if config is None:
        return True
    try:
        validate(config)
        counts = LoopCounts.from_config(config)
        most = 0 if counts is None else counts.with_gradient_at_most
        model = ModelConfig.from_config(config, vocab_size=16, max_length=8, gradient_loops=most)
        kinds = chosen(model).items()
        layer_class(model, {option: kind.layer_class for option, kind in kinds})
        if losses := LoopLosses.from_config(config):
            losses.check(model)
    except UserError:
        return True
    return False


def of(indices: Iterable[int]) -> list[dict[str, Any]]:
    return [OPTIONS[index] for index in indices]


def with_more(pair: tuple[int, int], left: set[Any], apart: set[Any]) -> tuple[int, ...]:
    """A pair and what goes with it, the options first that bring most pairs that are left."""
    found = pair
    while True:
        brings = {
            index: sum(tuple(sorted((index, other))) in left for other in found)
            for index in range(len(OPTIONS))
            if index not in found and not any(tuple(sorted((index, o))) in apart for o in found)
        }
        for index in sorted(brings, key=lambda i: -brings[i]):
            if brings[index] and not refused(*sorted((*found, index))):
                found = (*found, index)
                break
        else:
            return tuple(sorted(found))


def test_every_two_options_that_are_not_refused_train_and_decode_together() -> None:
    pairs = set(itertools.combinations(range(len(OPTIONS)), 2))
    apart = {pair for pair in pairs if refused(*pair)}
    left, traced = pairs - apart, 0
    while left:
        pair = min(left)
        together = with_more(pair, left, apart)
        trace(make_job(config_of(*of(together))))
        traced += 1
        left -= set(itertools.combinations(together, 2))
    assert traced > 10 and len(apart) < len(pairs) / 2


@pytest.mark.parametrize("rule", RULES, ids=lambda r: f"{r.key}, {r.other}")
def test_a_rule_names_values_that_there_are_and_refuses_what_it_says(rule: Rule) -> None:
    config = small_config()
    assert rule.refuses(config) is None  # The defaults go together.
    assert rule.values and set(rule.values) <= set(KEYS[rule.key].choices)
    by_type = {bool: (True, False), int: (0, 1)}
    choices = KEYS[rule.other].choices or by_type[type(rule.needed[0])]
    assert set(rule.needed) < set(choices)
    with config.unlocked():
        for value, other in itertools.product(rule.values, choices):
            set_key(config, rule.key, value)
            set_key(config, rule.other, other)
            said = rule.refuses(config)
            assert (said is None) == (other in rule.needed)
            if said:
                assert said.startswith(f"config.{rule.key}={value!r} ")
                assert said.endswith(f"not {other!r}") and f"config.{rule.other}=" in said
