"""What a set of runs shows, as a Document: the paper's tables and figures for these runs."""

import json
import re
from collections.abc import Sequence
from typing import Any

from looped_jax.analysis import plots, published
from looped_jax.analysis.document import Details, Document, Figure, Section, Table, Text
from looped_jax.analysis.fits import Line, ScalingLaw, alpha_ratio
from looped_jax.analysis.models import (
    PERPLEXITY,
    Model,
    TaskGroup,
    metric_curve,
    shown_metric,
    shown_value,
    task_groups,
)
from looped_jax.analysis.records import Record
from looped_jax.analysis.similarity import block_cosines
from looped_jax.config import RunError, UserError, flatten
from looped_jax.training.run import open_run

Part = Text | Table | Figure | Details


def build(records: Sequence[Record], missing: Sequence[str], title: str) -> Document:
    """The report. What cannot be shown is said in its place; nothing stops the rest."""
    first: list[Part] = []
    if missing:
        first.append(Text(tuple(f"Missing: {problem}" for problem in missing), "warning"))
    groups = task_groups(records)
    first.append(
        Text(
            (
                f"{len(records)} runs: "
                + "; ".join(f"{len(g.models)} models on {g.task}" for g in groups),
            )
        )
    )
    sections = [Section("Runs", tuple(first))]
    for group in groups:
        sections.append(Section(f"Results: {group.task}", tuple(_results(group))))
        if depth := _depth(group):
            sections.append(Section(f"Depth: {group.task}", tuple(depth)))
        if group.task == "text":
            sections.append(Section("Isoplots", tuple(_isoplots(group))))
    if maps := _similarity(records):
        sections.append(Section("Similarity of blocks", tuple(maps)))
    sections.append(Section("Costs", (_costs(records),)))
    sections.append(Section("Configs", tuple(_configs(records))))
    return Document(title, tuple(sections))


def _file(*words: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", "_".join(words).lower()).strip("_")


# Results.


def _results(group: TaskGroup) -> list[Part]:
    metrics = group.metrics
    if not metrics or not any(m.values(k) for m in group.models for k in metrics):
        return [Text(("None of these runs has been evaluated.",), "warning")]
    parts: list[Part] = [_main_table(group, metrics)]
    if group.task == "text":
        if components := _components(group):
            parts.append(components)
        parts += _published_language_models()
    elif table := _published_synthetic(group.task):
        parts.append(table)
    for metric in metrics:
        series = {
            record.name: points
            for model in group.models
            for record in model.records
            if (points := _points(record, metric))
        }
        if not series:
            continue
        y, log_y = _axis(metric), metric == PERPLEXITY
        picture = plots.curves(series, "training step", y, log_y)
        parts.append(
            Figure(_file("curve", metric), f"Learning curves: {shown_metric(metric)}", picture)
        )
    parts += _by_loops(group, metrics)
    return parts


def _axis(metric: str) -> str:
    name = shown_metric(metric)
    if metric == PERPLEXITY:
        return name
    return f"{name}: exact match (%)" if metric.endswith("/accuracy") else f"{name} (%)"


def _scale(metric: str) -> float:
    return 1.0 if metric == PERPLEXITY else 100.0


def _points(record: Record, metric: str) -> list[tuple[float, float]]:
    return [(step, _scale(metric) * value) for step, value in metric_curve(record, metric)]


def _main_table(group: TaskGroup, metrics: list[str]) -> Table:
    seeds = max(len(model.records) for model in group.models)
    header = ["model", "parameters", "FLOPs/step", "depth"]
    header += ["seeds"] if seeds > 1 else []
    paper = {metric: {m.label: _published(m, metric) for m in group.models} for metric in metrics}
    for metric in metrics:
        header.append(shown_metric(metric) + ("" if metric == PERPLEXITY else " (%)"))
        header += ["paper"] if any(v is not None for v in paper[metric].values()) else []
        if any(group.gap(model, metric) is not None for model in group.models):
            header.append("% Gap")
    rows = []
    for model in group.models:
        row = [
            model.label,
            f"{model.first.parameters:,}",
            f"{model.first.step_flops:.3g}",
            str(model.plan.effective_depth),
        ]
        row += [str(len(model.records))] if seeds > 1 else []
        for metric in metrics:
            row.append(_with_range(metric, model.values(metric)))
            if any(v is not None for v in paper[metric].values()):
                value = paper[metric][model.label]
                row.append("" if value is None else f"{value:.1f}")
            if any(group.gap(m, metric) is not None for m in group.models):
                gap = group.gap(model, metric)
                row.append("" if gap is None else f"{gap:.0f}")
        rows.append(row)
    note = (
        "Last evaluation of each run"
        + (", mean over seeds (lowest to highest)" if seeds > 1 else "")
        + ". % Gap = (looped - base) / (iso-FLOP - base) x 100, where kx1 is the base of kxL and "
        "(kL)x1 its iso-FLOP model; empty where one of them is not among the runs."
    )
    return Table(_file("results", group.task), f"Models on {group.task}", header, rows, note)


def _published(model: Model, metric: str) -> float | None:
    """What the paper reports for this very task and plan."""
    _, *task, kind = metric.split("/")
    if kind != "accuracy":
        return None
    reg = model.first.config.regularizer
    return published.find("/".join(task), model.plan, reg.block, reg.strength)


def _with_range(metric: str, values: list[float]) -> str:
    if not values:
        return "not evaluated"
    mean = shown_value(metric, sum(values) / len(values))
    if len(values) == 1:
        return mean
    return f"{mean} ({shown_value(metric, min(values))} to {shown_value(metric, max(values))})"


def _components(group: TaskGroup) -> Table | None:
    """Bits per byte of every component of the validation text."""
    prefix, suffix = "eval/text/", "/bits_per_byte"
    columns = {model.label: model.first for model in group.models if model.first.evaluations}
    names = sorted(
        {
            key.removeprefix(prefix).removesuffix(suffix)
            for record in columns.values()
            for key in record.evaluations[-1]
            # Not that of the whole text.
            if key.startswith(prefix) and key.removeprefix(prefix).endswith(suffix)
        }
    )
    if not names:
        return None
    rows = []
    for name in names:
        values = [record.last(f"{prefix}{name}{suffix}") for record in columns.values()]
        rows.append([name, *("" if v is None else f"{v:.3f}" for v in values)])
    title = "Bits per byte of the components of the validation text"
    return Table("components", title, ["component", *columns], rows)


def _published_synthetic(task: str) -> Table | None:
    """The paper's table of the family that a task belongs to, at the paper's size."""
    name = re.split(r"[_-]", task)[0]
    if name not in published.SYNTHETIC:
        return None
    models = published.table(name)
    columns = list(next(iter(models.values())))
    rows = [[m, *(f"{row[c]:.1f}" for c in columns)] for m, row in models.items()]
    title = f"As published (Saunshi et al., ICLR 2025): {name} at full size, accuracy (%)"
    return Table(f"published_{name}", title, ["model", *columns], rows)


def _published_language_models() -> list[Part]:
    models = published.table("lm_groups")
    judged = list(published.JUDGED)
    header = ["model"]
    for metric in judged:
        header += [shown_metric(f"group/{metric}"), "% Gap"]
    rows = []
    for name, row in models.items():
        cells = [name]
        for metric in judged:
            gap = row.get(f"gap_{metric}")
            value = f"{row[metric]:.{published.JUDGED[metric]}f}" if metric in row else ""
            cells += [value, "" if gap is None else f"{gap:.0f}"]
        rows.append(cells)
    differing = [gap for gap in published.printed_gaps() if not gap.agrees]
    note = (
        "Saunshi et al., ICLR 2025, tables 3 and 4: 1B-scale models, 250B tokens of the Pile. "
        "Recomputed from the printed averages, the printed % Gaps agree within rounding"
    )
    if differing:
        note += ", but for " + "; ".join(
            f"{g.model}, {shown_metric(f'group/{g.metric}')}: printed {g.printed:.0f}, recomputed "
            f"{g.recomputed:.1f} (rounding allows {g.allowed[0]:.0f} to {g.allowed[1]:.0f})"
            for g in differing
        )
    return [Table("published_lm_groups", "As published", header, rows, note + ".")]


def _by_loops(group: TaskGroup, metrics: list[str]) -> list[Part]:
    parts: list[Part] = []
    for metric in metrics:
        series = {}
        for model in group.models:
            points = model.first.by_loops(metric)
            if len(points) > 1:
                series[model.label] = [(n, _scale(metric) * v) for n, v in points.items()]
        if series:
            picture = plots.curves(series, "loops at evaluation", _axis(metric))
            title = f"Loops at evaluation: {shown_metric(metric)}"
            parts.append(Figure(_file("loops", metric), title, picture))
    return parts


# Depth.


def _depth(group: TaskGroup) -> list[Part]:
    """The scaling law, for every metric that has at least one series."""
    parts: list[Part] = []
    rows = []
    for metric in group.metrics:
        series = {
            name: points
            for name, models in group.series().items()
            if len(
                points := [
                    (float(m.plan.effective_depth), _scale(metric) * mean)
                    for m in models
                    if (mean := m.mean(metric)) is not None
                ]
            )
            > 1
        }
        fits = {}
        for name, points in series.items():
            depths, values = zip(*points, strict=True)
            if (fit := ScalingLaw.fit(depths, values)) is None:
                continue
            fits[name] = fit
            low, high = fit.alpha_interval
            ratio = ""
            if name != "kx1" and "kx1" in series:
                base: Any = tuple(zip(*series["kx1"], strict=True))
                if found := alpha_ratio((depths, values), base):
                    ratio = f"{found[0]:.2f} ({found[1][0]:.2f} to {found[1][1]:.2f})"
            rows.append(
                [
                    f"{shown_metric(metric)}: {name}",
                    ", ".join(f"{d:g}" for d in depths),
                    f"{fit.alpha:.2f} ({low:.2f} to {high:.2f})",
                    f"{fit.beta:.2f}",
                    ratio,
                ]
            )
        if series:
            title = f"Depth: {shown_metric(metric)}"
            picture = plots.scaling(series, fits, _axis(metric))
            parts.append(Figure(_file("depth", metric), title, picture))
    if rows:
        header = ["metric: series", "depths", "alpha (95%)", "beta", "alpha_loop / alpha_base"]
        note = (
            "Acc = alpha log D + beta by least squares, D the layers passed through; kx1 is depth "
            "by parameters, 4xL depth by loops. Intervals from resampling the points: with few "
            "points they say little, with two nothing."
        )
        name = _file("scaling", group.task)
        parts.append(Table(name, "Scaling law (paper, section 3.5)", header, rows, note))
    return parts


# Isoplots.


def _isoplots(group: TaskGroup) -> list[Part]:
    parts: list[Part] = []
    for metric in group.metrics:
        if metric == PERPLEXITY:
            continue
        series, rows = {}, []
        for model in group.models:
            loss = dict(zip(*model.first.curve("eval/text/loss"), strict=True))
            points = [
                (loss[step], 100 * value)
                for step, value in metric_curve(model.first, metric)
                if step in loss
            ]
            if not points:
                continue
            series[model.label] = points
            line = Line.fit(*zip(*points, strict=True))
            rows.append(
                [
                    model.label,
                    str(len(points)),
                    *(
                        ["no fit: fewer than two points", ""]
                        if line is None
                        else [f"{line.slope:.2f}", f"{line.r2:.2f}"]
                    ),
                ]
            )
        if series:
            name = shown_metric(metric)
            picture = plots.isoplot(series, f"{name} (%)")
            parts.append(Figure(_file("isoplot", metric), f"Isoplot: {name}", picture))
            header = ["model", "checkpoints", "slope (points per nat)", "R²"]
            parts.append(Table(_file("isoplot", metric), f"Fits: {name}", header, rows))
    if not parts:
        parts.append(
            Text(
                (
                    "No run has evaluations of a whole group of downstream tasks beside its "
                    "perplexity (config.eval.tasks, e.g. text,reasoning_primitives).",
                )
            )
        )
    return parts


# Heatmaps.


def _similarity(records: Sequence[Record]) -> list[Part]:
    """Heatmaps of untied models; blocks are the regulariser's, or single layers."""
    parts: list[Part] = []
    for record in records:
        if record.loops > 1 or record.plan.distinct_layers < 2:
            continue
        block = record.config.regularizer.block or record.config.stacking.block or 1
        title = record.name if record.name == record.label else f"{record.name}: {record.label}"
        try:
            params = open_run(str(record.workdir)).parameters()
            cosines = block_cosines(params, block)
        except (UserError, RunError) as error:
            parts.append(Text((f"{title}: no heatmap ({error})",), "warning"))
            continue
        # Norms' scales all begin at one and stay alike: what is drawn is the matrices.
        matrices = {name: c for name, c in cosines.items() if name.endswith("kernel")}
        layers = "layers" if block == 1 else f"blocks of {block} layers"
        note = f"Cosine between the parameters of {layers}, by group; step {record.checkpoint}."
        picture = plots.heatmaps(matrices)
        parts.append(Figure(_file("similarity", record.name), title, picture, note))
    return parts


# Costs and configs.


def _costs(records: Sequence[Record]) -> Table:
    header = [
        "run",
        "parameters",
        "steps",
        "FLOPs/step",
        "FLOPs in all",
        "s/step",
        "tokens/s",
        "MFU (%)",
    ]
    rows = []
    for record in records:
        tokens = record.config.train.batch_size * record.job.model.config.max_length
        seconds = record.step_seconds
        mfu = record.last("perf/mfu")
        rows.append(
            [
                record.name,
                f"{record.parameters:,}",
                f"{record.step:,}",
                f"{record.step_flops:.3g}",
                f"{record.step_flops * record.step:.3g}",
                "" if seconds is None else f"{seconds:.3f}",
                "" if seconds is None else f"{tokens / seconds:,.0f}",
                "" if mfu is None else f"{100 * mfu:.1f}",
            ]
        )
    note = (
        "FLOPs of the model at its full depth, counted from the architecture; seconds are the "
        "median of the logged medians."
    )
    return Table("costs", "What the runs cost", header, rows, note)


def _configs(records: Sequence[Record]) -> list[Part]:
    flat = [dict(flatten(record.config)) for record in records]
    differing = [
        key
        for key in flat[0]
        if key != "name" and len({json.dumps(f.get(key), default=str) for f in flat}) > 1
    ]
    parts: list[Part] = []
    if differing:
        rows = [
            [record.name, *(str(f.get(key)) for key in differing)]
            for record, f in zip(records, flat, strict=True)
        ]
        parts.append(Table("configs", "What differs", ["run", *differing], rows))
    for record in records:
        text = json.dumps(record.config.to_dict(), indent=1, sort_keys=True)
        parts.append(Details(f"config of {record.name}", text))
    return parts
