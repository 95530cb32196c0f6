"""Runs taken together: the models of one task, seeds of a model as one, and who is whose base.

What may be compared: runs on the same data are a TaskGroup; runs that differ in nothing but their
seed, and whose numbers are of one format, are a Model; models that differ in nothing but their plan
are of one setting, and only these have a % Gap or a depth line between them.
"""

import dataclasses
import functools
import hashlib
import json
import math
import statistics
from collections.abc import Sequence

from ml_collections import ConfigDict

from looped_jax import config as config_lib
from looped_jax.analysis.fits import percent_gap
from looped_jax.analysis.records import CONTENT, PLACE, UNKNOWN, Record
from looped_jax.data.tasks.downstream import group_members
from looped_jax.data.tasks.downstream.base import GROUPS
from looped_jax.evaluation.intervals import Interval
from looped_jax.evaluation.metric_table import Measured, Metric, clear_gain
from looped_jax.evaluation.metrics import metric_of
from looped_jax.models.loop_plan import LoopPlan

# Not what a model is.
UNLIKE_SEEDS = ("name", "seed")
SHORT = {"optimizer.learning_rate": "lr", "optimizer.name": "", "data.path": "", "model.dtype": ""}


def distinguishing_keys(configs: Sequence[ConfigDict]) -> list[str]:
    """The keys, in order, in which these differ, but for name and seed."""
    found = {key for c in configs[1:] for key in config_lib.differing_keys(configs[0], c)}
    return sorted(found - set(UNLIKE_SEEDS))


def short(config: ConfigDict, key: str) -> str:
    """A key and its value as in a label, e.g. `lr 0.1`, `adamw`, `d_model 64`."""
    section, _, leaf = key.rpartition(".")
    value = config_lib.get_key(config, key)
    # Some leaves say nothing without their section: block, strength.
    name = SHORT.get(key, f"{section}.{leaf}" if section in ("regularizer", "stacking") else leaf)
    shown = f"{value:g}" if isinstance(value, float) else str(value) or "none"
    return f"{name} {shown}".strip()


@dataclasses.dataclass(frozen=True)
class Model:
    """Runs that differ in their seed only."""

    label: str
    setting: str  # Equal for models that differ in their plan only; short, may be empty.
    records: tuple[Record, ...]

    @property
    def first(self) -> Record:
        return self.records[0]

    @property
    def plan(self) -> LoopPlan:
        return self.first.plan

    def named(self, seeds: int) -> str:
        """In a legend, of so many seeds: of a single run its name too, unless that says the
        plan."""
        if seeds > 1:
            return f"{self.label} ({seeds} seeds)"
        name = self.first.name
        said = len(self.records) > 1 or str(self.plan) in name
        return self.label if said else f"{name}: {self.label}"

    def step(self, metric: str) -> int | None:
        """The newest step at which any of the seeds was evaluated."""
        return max((p[-1][0] for r in self.records if (p := metric_curve(r, metric))), default=None)

    def complete(self, metric: str) -> bool:
        """Whether that is the last step of training."""
        return self.step(metric) == self.first.config.train.steps

    def seeds(self, metric: str) -> list[tuple[Record, float]]:
        """The seeds that were evaluated at that step, and their values: those that stopped earlier
        are not averaged with those that went on."""
        curves = [(r, curve) for r in self.records if (curve := metric_curve(r, metric))]
        return [(r, curve[-1][1]) for r, curve in curves if curve[-1][0] == self.step(metric)]

    def values(self, metric: str) -> list[float]:
        return [value for _, value in self.seeds(metric)]

    def mean(self, metric: str) -> float | None:
        values = self.values(metric)
        return Metric(metric).average(values) if values else None

    def measured(self, metric: str) -> Measured | None:
        """The mean, and its noise over what it was measured on: that of one seed, the average of
        all. (That of their mean would be less, and say nothing of how seeds differ.)"""
        mean = self.mean(metric)
        if mean is None:
            return None
        below, above = [], []
        for record, value in self.seeds(metric):
            noise = noise_of(record, metric)
            if noise is None:
                return mean, None
            below.append(value - noise[0])
            above.append(noise[1] - value)
        return mean, (mean - statistics.fmean(below), mean + statistics.fmean(above))


@dataclasses.dataclass(frozen=True)
class TaskGroup:
    """All models of one training task, on the same data."""

    task: str
    title: str  # The task, and what sets its data apart where other runs have others.
    models: tuple[Model, ...]

    @functools.cached_property
    def metrics(self) -> list[str]:
        """What the models are judged by: accuracies; of text, perplexity and the averages of the
        groups of downstream tasks that were evaluated in full."""
        names = {key for m in self.models for r in m.records for e in r.evaluations for key in e}
        found = sorted((name for name in names if Metric(name).headline), key=_natural)
        if self.task != "text":
            return found
        groups = [f"group/{g}" for g in GROUPS if names.issuperset(_headlines(g))]
        return [name for name in found if Metric(name).where == ("text",)] + groups

    def compared(self, metric: str) -> list[Model]:
        """The models that were evaluated at the latest step: of others no value goes beside
        theirs."""
        steps = {id(m): m.step(metric) for m in self.models if m.mean(metric) is not None}
        newest = max((step for step in steps.values() if step is not None), default=None)
        return [m for m in self.models if newest is not None and steps.get(id(m)) == newest]

    def best(self, metric: str) -> Model | None:
        """The model with the best mean, of those that are compared."""

        def gain(model: Model) -> float:
            mean = model.mean(metric)
            assert mean is not None
            return Metric(metric).gain(mean, 0.0)

        return max(self.compared(metric), key=gain, default=None)

    def near_best(self, metric: str) -> list[Model]:
        """The other models, of those that are compared, that the best is not better than by more
        than noise."""
        best = self.best(metric)
        if best is None or (of_best := best.measured(metric)) is None:
            return []
        others = [model for model in self.compared(metric) if model is not best]
        return [
            model
            for model in others
            if (found := model.measured(metric)) and not clear_gain(Metric(metric), of_best, found)
        ]

    def peers(self, model: Model, metric: str) -> tuple[Model, Model] | None:
        """Of a looped model the base and the iso-FLOP model that differ from it in the plan alone;
        None where one of them is not there or was not evaluated at the same step. None for two
        stacks of layers, which no plan kx1 has."""
        stacked = model.first.config.loop.get("nest") == "two_stacks"
        if stacked or model.plan.effective_depth == model.plan.distinct_layers:
            return None
        alike = {str(m.plan): m for m in self.models if m.setting == model.setting}
        base = alike.get(f"{model.plan.distinct_layers}x1")
        full = alike.get(f"{model.plan.effective_depth}x1")
        if base is None or full is None:
            return None
        steps = {m.step(metric) for m in (model, base, full)}
        return (base, full) if len(steps) == 1 and None not in steps else None

    def gap(self, model: Model, metric: str) -> float | None:
        """The % Gap of a looped model against its peers; None where it has none, or the iso-FLOP
        model is not better than the base by more than noise."""
        peers = self.peers(model, metric)
        if peers is None:
            return None
        looped, low, high = (m.measured(metric) for m in (model, *peers))
        if not (looped and low and high and clear_gain(Metric(metric), high, low)):
            return None
        return percent_gap(looped[0], low[0], high[0])

    def series(self, metric: str) -> dict[str, list[Model]]:
        """Fully trained models by what grows with depth: untied layers (`kx1`), or the loops of a
        block of k (`4xL`, which begins with 4x1), each of one setting, which is part of the name
        where there are several. Series with two depths or more."""
        several = len({model.setting for model in self.models}) > 1
        found: dict[str, list[Model]] = {}
        for model in self.models:
            if len(model.plan.segments) > 1 or not model.complete(metric):
                continue
            (segment,) = model.plan.segments
            end = f", {model.setting}" if several and model.setting else ""
            if segment.loops == 1:
                found.setdefault(f"kx1{end}", []).append(model)
            found.setdefault(f"{segment.layers}xL{end}", []).append(model)
        return {
            name: sorted(models, key=lambda m: m.plan.effective_depth)
            for name, models in found.items()
            if len({m.plan.effective_depth for m in models}) > 1
        }


def task_groups(records: Sequence[Record]) -> tuple[list[TaskGroup], list[str]]:
    """Groups in the order in which their data first appear, and what was left out: of runs of one
    model with the same seed, all but the first."""
    by_data: dict[str, list[Record]] = {}
    for record in records:
        by_data.setdefault(json.dumps(record.data, default=str), []).append(record)
    tasks = [group[0].task for group in by_data.values()]
    left_out: list[str] = []
    groups = []
    for members in by_data.values():
        task = members[0].task
        others = [r for r in records if r.task == task]
        title = task
        if tasks.count(task) > 1:
            title += f" ({', '.join(_sets_apart(members[0], others))})"
        models, doubles = _models(members)
        groups.append(TaskGroup(task, title, tuple(models)))
        left_out += doubles
    return groups, left_out


def _sets_apart(record: Record, others: Sequence[Record]) -> list[str]:
    """What sets a run's data apart from those of others of its task, as in a title."""
    data = [r.data for r in others]
    keys = sorted({key for of in data for key in of})
    apart = [key for key in keys if len({str(of.get(key)) for of in data}) > 1]
    if CONTENT not in apart:
        return [short(record.config, key) for key in apart]
    # Where it lies says more than what is in it, unless it lies in one place.
    shown = [key for key in apart if key in record.data and key != CONTENT]
    shown += [k for k in PLACE if len({config_lib.get_key(r.config, k) for r in others}) > 1]
    content = record.data.get(CONTENT)
    named = content and hashlib.sha256(content.encode()).hexdigest()[:6]
    return [short(record.config, key) for key in shown] + [f"content {named or UNKNOWN}"]


def _models(records: Sequence[Record]) -> tuple[list[Model], list[str]]:
    keys = distinguishing_keys([record.config for record in records])
    setting_keys = [key for key in keys if key != "model.plan"]
    mixed = len({record.numerics for record in records}) > 1
    by_key: dict[str, list[Record]] = {}
    left_out: list[str] = []
    for record in records:
        values = [record.numerics, *(config_lib.get_key(record.config, key) for key in keys)]
        seeds = by_key.setdefault(json.dumps(values, default=str), [])
        if same := [other for other in seeds if other.seed == record.seed]:
            left_out.append(
                f"{record.name} is left out: {same[0].name} is the same model with the same seed, "
                f"{record.seed}"
            )
        else:
            seeds.append(record)
    models = []
    for seeds in by_key.values():
        config = seeds[0].config
        parts = [short(config, key) for key in setting_keys if not _is_off(config, key)]
        parts += [f"numerics format {seeds[0].numerics}"] * mixed
        own = _regularized(config, setting_keys)
        label = ", ".join([str(seeds[0].plan), *own, *parts])
        models.append(Model(label, ", ".join(parts), tuple(seeds)))
    return models, left_out


def _is_off(config: ConfigDict, key: str) -> bool:
    """Whether a key is of something that this run did not do, and so says nothing of it."""
    section = key.partition(".")[0]
    return section in ("regularizer", "stacking") and not config[section].block


def _regularized(config: ConfigDict, shown: Sequence[str]) -> list[str]:
    """How a model was trained if not plainly, where that is not shown already."""
    keys = []
    if config.regularizer.block:
        keys += ["regularizer.block", "regularizer.strength"]
    if config.stacking.block:
        keys += ["stacking.block"]
    return [short(config, key) for key in keys if key not in shown]


def metric_curve(record: Record, metric: str) -> list[tuple[int, float]]:
    """(step, value) of every evaluation that has the metric; `group/NAME`: the average of a group
    of downstream tasks."""
    group = Metric(metric).group
    if not group:
        return list(zip(*record.curve(metric), strict=True))
    needed = _headlines(group)
    return [
        (int(line["step"]), sum(line[key] for key in needed) / len(needed))
        for line in record.evaluations
        if all(key in line for key in needed)
    ]


def noise_of(record: Record, metric: str) -> Interval | None:
    """The 95% interval of a run's last value; of a group's average that of independent tasks."""
    group = Metric(metric).group
    if not group:
        return record.noise(metric)
    needed = _headlines(group)
    lines = [line for line in record.evaluations if all(key in line for key in needed)]
    intervals = [Metric(key).interval(lines[-1]) for key in needed] if lines else []
    known = [interval for interval in intervals if interval is not None]
    if not lines or len(known) < len(needed):
        return None
    values = [lines[-1][key] for key in needed]
    mean = statistics.fmean(values)
    off = [
        math.hypot(*(i[end] - value for i, value in zip(known, values, strict=True))) / len(needed)
        for end in (0, 1)
    ]
    return mean - off[0], mean + off[1]


def _headlines(group: str) -> list[str]:
    """The metrics whose average is a group's."""
    return [f"eval/{name}/{metric_of(name)([]).headline}" for name in group_members(group)]


def _natural(name: str) -> tuple[int, str]:
    return len(name), name
