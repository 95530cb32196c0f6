"""What the loops of each model did while it was trained (docs/train.md), a figure per model."""

import re
from collections.abc import Sequence

from looped_jax.analysis import plots
from looped_jax.analysis.curve_figures import file_name
from looped_jax.analysis.document import Figure, Numbers
from looped_jax.analysis.groups import Model, TaskGroup
from looped_jax.analysis.records import Record

# By the last word of a metric's name: what it is called here.
PANELS = {
    "state_norm": "norm of the stream",
    "relative_update": "norm of a loop's update, relative",
    "cosine_to_before": "cosine to the loop before",
    "cosine_between_tokens": "cosine between tokens",
    "exit": "probability of ending there",
}
OVER_LOOPS = {"exit/entropy": "entropy of the exits (nats)"}
DECAY = {"decay_max": "largest", "decay_mean": "mean", "decay_min": "least"}


def loop_figures(group: TaskGroup) -> list[Figure]:
    """One for each model's first seed and looped segment, as far as it was watched."""
    return [figure for model in group.models for figure in _of_model(model)]


def _of_model(model: Model) -> list[Figure]:
    record = model.first
    names = {name for line in record.evaluations for name in line}
    watched = {found[1] for name in names if (found := re.match(r"(.*)/loop_1/state_norm$", name))}
    tasks = sorted({where.split("/")[1] for where in watched})
    # Several tasks may have been evaluated: what is shown is of one.
    shown = record.task if record.task in tasks else next(iter(tasks), "")
    figures = []
    for where in sorted(w for w in watched if w.split("/")[1] == shown):
        segment = "/".join(where.split("/")[2:])
        title = ", ".join(filter(None, (f"Loops while training: {model.label}", segment)))
        note = f"Means over tokens of the held-out rows of {shown}, first seed."
        panels = _panels(record, where, segment)
        picture = plots.panels(panels, "training step", "loop")
        name = file_name("loops_while_training", record.name, segment)
        figures.append(Figure(name, title, picture, note, _numbers(panels)))
    return figures


def _numbers(panels: Sequence[plots.Panel]) -> Numbers:
    """Every point of every line; a loop by its number, what has no loop by its name."""
    rows: list[tuple[object, ...]] = []
    for panel in panels:
        of_loops = ((loop, points) for loop, points in enumerate(panel.ordered, start=1))
        for line, points in (*of_loops, *panel.named.items()):
            rows += [(panel.title, line, int(step), value) for step, value in points]
    return Numbers(("panel", "loop", "step", "value"), rows)


def _panels(record: Record, where: str, segment: str) -> list[plots.Panel]:
    found = []
    for word, title in PANELS.items():
        loops: list[plots.Points] = []
        while points := _points(record, f"{where}/loop_{len(loops) + 1}/{word}"):
            loops.append(points)
        if loops:
            found.append(plots.Panel(title, loops, is_cosine=word.startswith("cosine")))
    for word, title in OVER_LOOPS.items():
        if points := _points(record, f"{where}/{word}"):
            found.append(plots.Panel(title, named={"": points}))
    prefix = "/".join(filter(None, ("loop", segment)))
    rates = {said: _points(record, f"{prefix}/{word}") for word, said in DECAY.items()}
    if all(rates.values()):
        found.append(plots.Panel("decay of the stream, a", named=rates))
    return found


def _points(record: Record, metric: str) -> Sequence[tuple[float, float]]:
    return list(zip(*record.curve(metric), strict=True))
