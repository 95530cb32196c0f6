"""Figures with a line fitted to them, and the tables of the fits: depth, and isoplots."""

import re
from typing import Any

from looped_jax.analysis import plots
from looped_jax.analysis.curve_figures import OF_A_RUN, file_name, of_a_run
from looped_jax.analysis.document import Figure, Numbers, Part, Table, Text
from looped_jax.analysis.fits import Line, ScalingLaw, alpha_ratio
from looped_jax.analysis.groups import TaskGroup, metric_curve
from looped_jax.evaluation.metric_table import Metric


def depth(group: TaskGroup) -> list[Part]:
    """The scaling law, for every metric that has at least one series."""
    parts: list[Part] = []
    rows = []
    for name in group.metrics:
        metric = Metric(name)
        # Fully trained models have been evaluated.
        series: dict[str, list[tuple[float, float]]] = {
            of: [
                (m.plan.effective_depth, metric.kind.scale * (m.mean(name) or 0.0)) for m in models
            ]
            for of, models in group.series(name).items()
        }
        fits = {}
        for of, points in series.items():
            depths, values = zip(*points, strict=True)
            if (fit := ScalingLaw.fit(depths, values)) is None:
                continue
            fits[of] = fit
            # Depth by parameters of the same setting.
            by_parameters = re.sub(r"^\d+xL", "kx1", of)
            ratio = ""
            if by_parameters != of and by_parameters in series:
                base: Any = tuple(zip(*series[by_parameters], strict=True))
                if found := alpha_ratio((depths, values), base):
                    ratio = f"{found[0]:.2f}{_interval(found[1])}"
            rows.append(
                [
                    f"{metric.in_words}: {of}",
                    ", ".join(f"{d:g}" for d in depths),
                    f"{fit.alpha:.2f}{_interval(fit.alpha_interval)}",
                    f"{fit.beta:.2f}",
                    ratio,
                ]
            )
        if series:
            picture = plots.scaling(series, fits, metric.axis)
            title = f"Depth: {metric.in_words}"
            means = [
                (
                    of,
                    m.label,
                    str(m.plan),
                    m.plan.effective_depth,
                    len(m.values(name)),
                    m.mean(name),
                )
                for of, models in group.series(name).items()
                for m in models
            ]
            numbers = Numbers(("series", "model", "plan", "depth", "seeds", name), means)
            parts.append(Figure(file_name("depth", name), title, picture, numbers=numbers))
    if rows:
        header = ["metric: series", "depths", "alpha (95%)", "beta", "alpha_loop / alpha_base"]
        note = (
            "Acc = alpha log D + beta by least squares, D the layers passed through; kx1 is depth "
            "by parameters, 4xL depth by loops; a series holds fully trained models that differ in "
            "the plan alone. Intervals from resampling the points; none from fewer than three "
            "depths."
        )
        file = file_name("scaling", group.task)
        parts.append(Table(file, "Scaling law (paper, section 3.5)", header, rows, note))
    return parts


def _interval(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f" ({interval[0]:.2f} to {interval[1]:.2f})"


def isoplots(group: TaskGroup) -> list[Part]:
    """A figure and the fits for every group of downstream tasks; of each model's first seed."""
    parts: list[Part] = []
    for name in group.metrics:
        metric = Metric(name)
        if not metric.percent:
            continue
        series: dict[str, list[tuple[float, float]]] = {}
        rows: list[list[str]] = []
        numbers: list[tuple[object, ...]] = []
        for model in group.models:
            loss: dict[float, float] = dict(zip(*model.first.curve("eval/text/loss"), strict=True))
            found = [
                (step, loss[step], value)
                for step, value in metric_curve(model.first, name)
                if step in loss
            ]
            if not found:
                continue
            points = [(x, metric.kind.scale * value) for _, x, value in found]
            series[model.named(1)] = points
            numbers += [(*of_a_run(model, model.first), *point) for point in found]
            rows.append([model.label, str(len(points)), *_line(points)])
        if series:
            picture = plots.isoplot(series, metric.axis)
            file, words = file_name("isoplot", name), metric.in_words
            drawn = Numbers((*OF_A_RUN, "step", "eval/text/loss", name), numbers)
            parts.append(Figure(file, f"Isoplot: {words}", picture, numbers=drawn))
            header = ["model", "checkpoints", "slope (points per nat)", "R²"]
            note = "Of each model's first seed; two points have a line, and nothing to judge it by."
            parts.append(Table(file, f"Fits: {words}", header, rows, note))
    if not parts:
        missing = (
            "No run has evaluations of a whole group of downstream tasks beside its perplexity "
            "(config.eval.tasks, e.g. text,reasoning_primitives)."
        )
        parts.append(Text((missing,)))
    return parts


def _line(points: list[tuple[float, float]]) -> list[str]:
    """Its slope and R²."""
    line = Line.fit(*zip(*points, strict=True))
    if line is None:
        return ["no fit: fewer than two points", ""]
    return [f"{line.slope:.2f}", f"{line.r2:.2f}" if len(points) > 2 else ""]
