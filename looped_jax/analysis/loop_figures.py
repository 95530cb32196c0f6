"""What the loops of each model did while it was trained (docs/train.md), a figure per model."""

import re
from collections.abc import Sequence

from looped_jax.analysis import plots
from looped_jax.analysis.document import Figure
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
        picture = plots.panels(_panels(record, where, segment), "training step", "loop")
        name = re.sub(r"[^a-z0-9]+", "_", f"loops_while_training_{record.name}_{segment}".lower())
        figures.append(Figure(name.strip("_"), title, picture, note))
    return figures


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
