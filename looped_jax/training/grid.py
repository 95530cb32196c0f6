"""Grids of overrides for sweep files: every arm of a comparison at the same learning rates, say.

    ARMS = zipped({"model.plan": ("6x1", "2x3"), "train.batch_size": (32, 64)})
    RATES = product({"optimizer.learning_rate": (1e-3, 3e-3, 1e-2)})

    def get_sweep():
        return runs("experiments/phop.py:6x1", crossed(ARMS, RATES), {"train.steps": 500})

An axis is a dotted config key and its values, a point of a grid what one run overrides.
"""

import hashlib
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from looped_jax import config as config_lib
from looped_jax.errors import UserError
from looped_jax.training.job import planned_step_flops
from looped_jax.training.sweep import SweepRun

Point = dict[str, Any]

# Folders' names may have 255 bytes; tools put something in front or behind.
LONGEST = 120


def product(axes: Mapping[str, Sequence[Any]]) -> tuple[Point, ...]:
    """Every combination of the axes' values, the last axis changing fastest. UserError for an axis
    that is no list of values."""
    _check(axes)
    return tuple(
        dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())
    )


def zipped(axes: Mapping[str, Sequence[Any]]) -> tuple[Point, ...]:
    """The first values of all axes together, then the second ones, …; UserError for an axis that is
    no list of values, or axes of several lengths."""
    _check(axes)
    if len({len(values) for values in axes.values()}) > 1:
        lengths = ", ".join(f"{key}: {len(values)}" for key, values in axes.items())
        raise UserError(f"axes that go together must have as many values each ({lengths})")
    return tuple(
        dict(zip(axes, values, strict=True)) for values in zip(*axes.values(), strict=True)
    )


def _check(axes: Mapping[str, Sequence[Any]]) -> None:
    for key, values in axes.items():
        if isinstance(values, str) or not isinstance(values, Sequence):
            raise UserError(
                f"axis {key}: {values!r} is no list of values; for one value: ({values!r},)"
            )


def crossed(*grids: Iterable[Mapping[str, Any]]) -> tuple[Point, ...]:
    """Each point of the first grid with each of the second, and so on, the last one changing
    fastest. UserError for a key that two of them set."""

    def merged(points: tuple[Mapping[str, Any], ...]) -> Point:
        keys = [key for point in points for key in point]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise UserError(f"two of the crossed grids set {twice[0]}; one of them must decide")
        return {key: value for point in points for key, value in point.items()}

    return tuple(merged(points) for points in itertools.product(*grids))


def run_name(point: Mapping[str, Any]) -> str:
    """A folder's name that says a point's values, e.g. `plan=2x3_learning_rate=0.003`; `base` for
    a point without any.

    Keys lose their section where no other key of a config ends in the same way. In values all but
    letters, digits and `._+-` becomes `-`. Where that, or cutting at LONGEST characters, loses
    something, a hash of the values ends the name: points with the same keys and other values have
    other names.
    """
    if not point:
        return "base"
    leaves = [key.rsplit(".", 1)[-1] for key in {**config_lib.KEYS, **point}]
    keys = [
        key if leaves.count(key.rsplit(".", 1)[-1]) > 1 else key.rsplit(".", 1)[-1] for key in point
    ]
    texts = [config_lib.to_text(value) for value in point.values()]
    # No plan has hyphens: nothing is lost.
    plain = [re.sub(r"(\d+x\d+),(?=\d+x\d)", r"\1-", text) for text in texts]
    safe = [re.sub(r"[^A-Za-z0-9._+-]+", "-", text) for text in plain]
    name = "_".join(f"{key}={text}" for key, text in zip(keys, safe, strict=True))
    if safe == plain and len(name) <= LONGEST:
        return name
    return f"{name[:LONGEST]}-{hashlib.sha256(repr(texts).encode()).hexdigest()[:8]}"


def at_equal_flops(
    config: str,
    points: Iterable[Mapping[str, Any]],
    base: Mapping[str, Any],
    reference: Mapping[str, Any],
) -> tuple[Point, ...]:
    """The points, each with the `train.steps` after which it has been trained with as many FLOPs
    (models/flops.py) as the point ``reference``, of the experiment ``config`` with ``base``, and
    with the same share of them warming up. UserError for steps that grow (a curriculum of loops,
    stacking): how much one costs follows from how many there are."""

    def loaded(point: Mapping[str, Any]) -> ConfigDict:
        made = SweepRun(run_name(point), config, {**base, **point}).load()
        if made.counts.curriculum != "none" or made.stacking.block:
            raise UserError(f"{run_name(point)}: its steps grow; at_equal_flops is for equal ones")
        return made

    whole = loaded(reference)
    flops = whole.train.steps * planned_step_flops(whole)

    def equalled(point: Mapping[str, Any]) -> Point:
        steps = max(1, round(flops / planned_step_flops(loaded(point))))
        warmup = round(steps * whole.optimizer.warmup_steps / whole.train.steps)
        return {**point, "train.steps": steps, "optimizer.warmup_steps": warmup}

    return tuple(equalled(point) for point in points)


def runs(
    config: str, points: Iterable[Mapping[str, Any]], base: Mapping[str, Any] | None = None
) -> tuple[SweepRun, ...]:
    """A run of the experiment ``config`` for each point, named after it; ``base`` is what all of
    them override, where the point does not say otherwise."""
    return tuple(SweepRun(run_name(point), config, {**(base or {}), **point}) for point in points)
