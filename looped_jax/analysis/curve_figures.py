"""Training and validation curves, and what models reach with other loop counts than in training."""

import re
from collections.abc import Callable, Sequence

from looped_jax.analysis import plots
from looped_jax.analysis.document import Figure, Numbers, Table
from looped_jax.analysis.groups import Model, TaskGroup, metric_curve
from looped_jax.analysis.records import Record
from looped_jax.evaluation.metric_table import Metric

# A curve of one run, from a metric: (x, value) as stored.
Reading = Callable[[Record, str], Sequence[tuple[float, float]]]
TRAINING = "train/loss"
OF_A_RUN = ("run", "model", "plan", "seed")
SEEDS = "Pale: seeds; full: their mean, where all have a value."


def file_name(*words: str) -> str:
    """Of a figure or table, without what file systems dislike."""
    return re.sub(r"[^a-z0-9]+", "_", "_".join(words).lower()).strip("_")


def of_a_run(model: Model, record: Record) -> tuple[object, ...]:
    """The first columns of numbers in full."""
    return record.name, model.label, str(record.plan), record.seed


def learning_curves(group: TaskGroup) -> list[Figure]:
    """The loss in training and on validation rows, then every metric that models are judged by."""
    figures = []
    loss = f"eval/{group.task}/loss"
    lines = _curves(group, TRAINING, metric_curve, beside=loss)
    if lines:
        name, title = file_name("curve", TRAINING), "Loss in training and validation"
        both = ("training", "validation") if any(line.beside for line in lines) else None
        axis = Metric(loss).axis
        picture = plots.curves(lines, "training step", axis, beside=both)
        numbers = _numbers(group, (TRAINING, loss), metric_curve, "step")
        figures.append(Figure(name, title, picture, _note(lines), numbers))
    for name in group.metrics:
        metric = Metric(name)
        if lines := _curves(group, name, metric_curve):
            picture = plots.curves(lines, "training step", metric.axis, metric.kind.log_axis)
            title = f"Validation while training: {metric.in_words}"
            numbers = _numbers(group, (name,), metric_curve, "step")
            figures.append(Figure(file_name("curve", name), title, picture, _note(lines), numbers))
    return figures


def _note(lines: Sequence[plots.Curve]) -> str:
    return SEEDS if any(line.seeds for line in lines) else ""


def _curves(group: TaskGroup, metric: str, read: Reading, beside: str = "") -> list[plots.Curve]:
    """Of every model of which a run has the metric, or what is to be drawn beside it."""
    found = []
    for number, model in enumerate(group.models):
        points, seeds = _mean(model, metric, read)
        others = _mean(model, beside, read)[0] if beside else []
        if points or others:
            name, loops = model.named(max(1, len(seeds))), model.first.loops
            found.append(plots.Curve(name, points, seeds, others, loops, number))
    return found


def _mean(model: Model, metric: str, read: Reading) -> tuple[plots.Points, list[plots.Points]]:
    """As shown: the mean of the seeds, where all have a value, and each of them if several."""
    kind = Metric(metric).kind
    curves = [dict(curve) for record in model.records if (curve := read(record, metric))]
    if not curves:
        return [], []
    shared = [x for x in curves[0] if all(x in curve for curve in curves)]
    mean = [(x, kind.scale * kind.average([curve[x] for curve in curves])) for x in shared]
    if len(curves) == 1:
        return mean, []
    return mean, [[(x, kind.scale * y) for x, y in curve.items()] for curve in curves]


def _numbers(group: TaskGroup, metrics: Sequence[str], read: Reading, x: str) -> Numbers:
    """Every point of every run, as stored."""
    rows = [
        (*of_a_run(model, record), metric, int(at), value)
        for metric in metrics
        for model in group.models
        for record in model.records
        for at, value in read(record, metric)
    ]
    return Numbers((*OF_A_RUN, "metric", x, "value"), rows)


# Loops at evaluation.


def _by_loops(record: Record, metric: str) -> Sequence[tuple[float, float]]:
    return list(record.by_loops(metric).items())


def by_loops(group: TaskGroup) -> list[Figure | Table]:
    """Each metric over the loops at evaluation: drawn, and in a table; trained counts marked."""
    parts: list[Figure | Table] = []
    for name in group.metrics:
        metric = Metric(name)
        lines = [line for line in _curves(group, name, _by_loops) if len(line.points) > 1]
        if not lines:
            continue
        axes = ("loops at evaluation", metric.axis, metric.kind.log_axis)
        picture = plots.curves(lines, *axes, mark="loops in training")
        file, title = file_name("loops", name), f"Loops at evaluation: {metric.in_words}"
        numbers = _numbers(group, (name,), _by_loops, "loops")
        parts.append(Figure(file, title, picture, _note(lines), numbers))
        parts.append(_loops_table(lines, metric, file, title))
    return parts


def _loops_table(lines: Sequence[plots.Curve], metric: Metric, file: str, title: str) -> Table:
    counts = sorted({x for line in lines for x, _ in line.points})
    rows, marked = [], set()
    for i, line in enumerate(lines):
        shown = {x: metric.shown(value / metric.kind.scale) for x, value in line.points}
        rows.append([line.name, *(shown.get(count, "") for count in counts)])
        marked |= {(i, j) for j, count in enumerate(counts, start=1) if count == line.mark}
    header = ["model", *(f"{n:g} {'loop' if n == 1 else 'loops'}" for n in counts)]
    unit = " (%)" if metric.percent else ""
    note = "Means over seeds. " * any(line.seeds for line in lines)
    return Table(file, f"{title}{unit}", header, rows, f"{note}Marked: loops in training.", marked)
