"""Runs taken together: the models of one task, seeds of a model as one, and who is whose base."""

import dataclasses
import functools
from collections.abc import Sequence

from looped_jax.analysis.fits import percent_gap
from looped_jax.analysis.records import Record
from looped_jax.data.tasks.downstream import group_members
from looped_jax.data.tasks.downstream.base import GROUPS
from looped_jax.evaluation.metrics import metric_of
from looped_jax.models.loop_plan import LoopPlan

PERPLEXITY = "eval/text/perplexity"


@dataclasses.dataclass(frozen=True)
class Model:
    """Runs that differ in their seed only."""

    label: str
    records: tuple[Record, ...]

    @property
    def first(self) -> Record:
        return self.records[0]

    @property
    def plan(self) -> LoopPlan:
        return self.first.plan

    @property
    def plain(self) -> bool:
        """Whether nothing but the plan sets it apart."""
        return self.label == str(self.plan)

    def values(self, metric: str) -> list[float]:
        """The last evaluation of every seed that has one."""
        return [v for record in self.records if (v := last_value(record, metric)) is not None]

    def mean(self, metric: str) -> float | None:
        values = self.values(metric)
        return sum(values) / len(values) if values else None


@dataclasses.dataclass(frozen=True)
class TaskGroup:
    """All models of one training task."""

    task: str
    models: tuple[Model, ...]

    @functools.cached_property
    def metrics(self) -> list[str]:
        """What the models are judged by: accuracies; of text, perplexity and the averages of the
        groups of downstream tasks that were evaluated in full."""
        names = {key for m in self.models for r in m.records for e in r.evaluations for key in e}
        if self.task == "text":
            groups = [f"group/{g}" for g in GROUPS if names.issuperset(_headlines(g))]
            return [PERPLEXITY, *groups]
        return sorted((n for n in names if n.endswith("/accuracy")), key=_natural)

    def gap(self, model: Model, metric: str) -> float | None:
        """The % Gap of a looped model; None where its base or iso-FLOP model is not among them."""
        if model.plan.effective_depth == model.plan.distinct_layers:
            return None
        plain = {m.label: m for m in self.models if m.plain}
        base = plain.get(f"{model.plan.distinct_layers}x1")
        full = plain.get(f"{model.plan.effective_depth}x1")
        numbers = [m.mean(metric) if m else None for m in (model, base, full)]
        if any(number is None for number in numbers):
            return None
        return percent_gap(*numbers)  # type: ignore[arg-type]

    def series(self) -> dict[str, list[Model]]:
        """Models by what grows with depth: untied layers (`kx1`), or the loops of a block of k
        (`4xL`, which begins with 4x1). Series with two depths or more."""
        found: dict[str, list[Model]] = {}
        for model in self.models:
            if not model.plain or len(model.plan.segments) > 1:
                continue
            (segment,) = model.plan.segments
            if segment.loops == 1:
                found.setdefault("kx1", []).append(model)
            found.setdefault(f"{segment.layers}xL", []).append(model)
        return {
            name: sorted(models, key=lambda m: m.plan.effective_depth)
            for name, models in found.items()
            if len({m.plan.effective_depth for m in models}) > 1
        }


def task_groups(records: Sequence[Record]) -> list[TaskGroup]:
    """Groups in the order in which their tasks first appear."""
    by_task: dict[str, dict[str, list[Record]]] = {}
    for record in records:
        key = f"{record.label}\n{_size(record)}"
        by_task.setdefault(record.task, {}).setdefault(key, []).append(record)
    groups = []
    for task, by_key in by_task.items():
        labels = [key.split("\n")[0] for key in by_key]
        models = []
        for key, label in zip(by_key, labels, strict=True):
            whole = label if labels.count(label) == 1 else f"{label} ({key.split(chr(10))[1]})"
            models.append(Model(whole, tuple(by_key[key])))
        groups.append(TaskGroup(task, tuple(models)))
    return groups


def _size(record: Record) -> str:
    """What else tells models of one plan apart."""
    c = record.config
    return f"d={c.model.d_model}, {c.train.steps} steps, batch {c.train.batch_size}"


def last_value(record: Record, metric: str) -> float | None:
    """A metric at a run's last evaluation that has it; `group/NAME`: the average of a group."""
    points = metric_curve(record, metric)
    return points[-1][1] if points else None


def metric_curve(record: Record, metric: str) -> list[tuple[int, float]]:
    """(step, value) of every evaluation that has the metric; `group/NAME` as in last_value."""
    if not metric.startswith("group/"):
        return list(zip(*record.curve(metric), strict=True))
    needed = _headlines(metric.removeprefix("group/"))
    return [
        (int(line["step"]), sum(line[key] for key in needed) / len(needed))
        for line in record.evaluations
        if all(key in line for key in needed)
    ]


def _headlines(group: str) -> list[str]:
    """The metrics whose average is a group's."""
    return [f"eval/{name}/{metric_of(name)([]).headline}" for name in group_members(group)]


def _natural(name: str) -> tuple[int, str]:
    return len(name), name


def shown_metric(metric: str) -> str:
    """A metric in words."""
    if metric.startswith("group/"):
        return metric.removeprefix("group/").replace("_", " ")
    _, *task, kind = metric.split("/")
    return " ".join(task) if kind == "accuracy" else f"{' '.join(task)} {kind}"


def shown_value(metric: str, value: float) -> str:
    """Percent for what is from 0 to 1."""
    return f"{value:.2f}" if metric == PERPLEXITY else f"{100 * value:.1f}"
