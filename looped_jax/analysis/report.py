"""What a set of runs shows, as a Document: the paper's tables and figures for these runs."""

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from looped_jax.analysis import plots, published
from looped_jax.analysis.document import Details, Document, Figure, Grid, Section, Table, Text
from looped_jax.analysis.fits import Line, ScalingLaw, alpha_ratio
from looped_jax.analysis.groups import Model, TaskGroup, metric_curve, task_groups
from looped_jax.analysis.loop_figures import loop_figures
from looped_jax.analysis.provenance import mixed_numerics, mixed_samples, provenance_table
from looped_jax.analysis.records import Record
from looped_jax.analysis.similarity import block_cosines
from looped_jax.config import flatten
from looped_jax.errors import RunError, UserError
from looped_jax.evaluation.intervals import binomial_interval
from looped_jax.evaluation.metric_table import Metric, count_of, text_parts
from looped_jax.training.run import open_run

Part = Text | Table | Figure | Grid | Details


def build(records: Sequence[Record], missing: Sequence[str], title: str) -> Document:
    """The report. What cannot be shown is said in its place; nothing stops the rest."""
    first: list[Part] = []
    groups, left_out = task_groups(records)
    warnings = [f"Missing: {problem}" for problem in missing]
    warnings += left_out + mixed_numerics(records)
    for group in groups:
        own = [record for model in group.models for record in model.records]
        warnings += [f"{group.title}: {problem}" for problem in mixed_samples(own)]
    if warnings:
        first.append(Text(tuple(warnings), "warning"))
    counts = "; ".join(f"{len(g.models)} models on {g.title}" for g in groups)
    first.append(Text((f"{len(records)} runs: {counts}",)))
    sections = [Section("Runs", tuple(first))]
    for group in groups:
        sections.append(Section(f"Results: {group.title}", tuple(_results(group))))
        if depth := _depth(group):
            sections.append(Section(f"Depth: {group.title}", tuple(depth)))
        if loops := loop_figures(group):
            sections.append(Section(f"Loops while training: {group.title}", tuple(loops)))
        if group.task == "text":
            sections.append(Section(f"Isoplots: {group.title}", tuple(_isoplots(group))))
    if maps := _similarity(records):
        sections.append(Section("Similarity of blocks", tuple(maps)))
    sections.append(Section("Costs", (_costs(records),)))
    sections.append(Section("Provenance", (provenance_table(records),)))
    sections.append(Section("Configs", tuple(_configs(records))))
    return Document(title, _each_once(sections))


def _each_once(sections: Sequence[Section]) -> tuple[Section, ...]:
    """What two groups share, such as the paper's table, stands in the first; files have names of
    their own where two groups are judged by one metric, or two runs' names make one file's."""
    shown: list[Part] = []
    seen: Counter[tuple[type, str]] = Counter()
    found = []
    for section in sections:
        parts: list[Part] = []
        for part in section.parts:
            if isinstance(part, Table | Figure):
                if part in shown:
                    continue
                shown.append(part)
                file = (type(part), part.name)
                seen[file] += 1
                if seen[file] > 1:
                    part = dataclasses.replace(part, name=f"{part.name}_{seen[file]}")
            parts.append(part)
        found.append(Section(section.title, tuple(parts)))
    return tuple(found)


def _file(*words: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", "_".join(words).lower()).strip("_")


# Results.


def _results(group: TaskGroup) -> list[Part]:
    metrics = group.metrics
    if not metrics or not any(m.values(k) for m in group.models for k in metrics):
        return [Text(("None of these runs has been evaluated.",), "warning")]
    parts: list[Part] = [_main_table(group, metrics)]
    if group.task == "text":
        parts += _components(group)
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
        found = Metric(metric)
        picture = plots.curves(series, "training step", found.axis, found.kind.log_axis)
        title = f"Learning curves: {found.in_words}"
        parts.append(Figure(_file("curve", metric), title, picture))
    parts += _by_loops(group, metrics)
    return parts


def _points(record: Record, metric: str) -> list[tuple[float, float]]:
    scale = Metric(metric).kind.scale
    return [(step, scale * value) for step, value in metric_curve(record, metric)]


def _main_table(group: TaskGroup, metrics: list[str]) -> Table:
    seeds = max(len(model.records) for model in group.models)
    header = ["model", "parameters", "FLOPs/step", "depth"]
    header += ["seeds"] if seeds > 1 else []
    paper = {metric: {m.label: _published(m, metric) for m in group.models} for metric in metrics}
    for metric in metrics:
        header.append(Metric(metric).heading)
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
            row.append(_value(model, metric))
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
        "(kL)x1 its iso-FLOP model; empty where one of them that differs in the plan alone is not "
        "among the runs, or the iso-FLOP model is not better than the base by more than noise. "
        + _noise(group, metrics)
    )
    return Table(_file("results", group.task), f"Models on {group.title}", header, rows, note)


def _noise(group: TaskGroup, metrics: list[str]) -> str:
    """What is known of how much the numbers of a table would change on other examples."""
    sentences = []
    examples = {r.examples for m in group.models for r in m.records} - {None}
    if examples:
        least = min(n for n in examples if n)
        low, high = binomial_interval(0.5, least)
        sentences.append(
            f"An accuracy over {least:,} examples has a 95% interval of up to "
            f"±{50 * (high - low):.1f} points."
        )
    lines = [line for m in group.models for line in m.first.evaluations[-1:]]
    if any(Metric(metric).interval(line) for metric in metrics for line in lines):
        sentences.append("In square brackets: 95% interval over documents.")
    if chances := [(m, c) for m in map(Metric, metrics) if (c := m.chance) is not None]:
        levels = ", ".join(f"{m.in_words} {m.with_unit(c)}" for m, c in chances)
        sentences.append(f"Chance: {levels}.")
    return " ".join(sentences)


def _published(model: Model, metric: str) -> float | None:
    """What the paper reports for this very task and plan."""
    _, *task, kind = metric.split("/")
    if kind != "accuracy":
        return None
    reg = model.first.config.regularizer
    return published.find("/".join(task), model.plan, reg.block, reg.strength)


def _value(model: Model, metric: str) -> str:
    """The mean with what is known of its noise: of one seed its own interval, of more the range."""
    seeds, found = model.seeds(metric), Metric(metric)
    if not seeds:
        return "not evaluated"
    values = [value for _, value in seeds]
    shown = found.shown(found.average(values))
    if len(seeds) > 1:
        shown += f" ({found.shown(min(values))} to {found.shown(max(values))})"
    elif interval := found.interval(seeds[0][0].evaluations[-1]):
        shown += f" {found.span(interval)}"
    if len(seeds) < len(model.records):
        shown += f" of {len(seeds)}"
    return shown if model.complete(metric) else f"{shown} at step {model.step(metric)}"


def _components(group: TaskGroup) -> list[Part]:
    """Bits per byte, and perplexity, of every component of the validation text and of all of it,
    each model's first seed, and how much text that is."""
    last = {m.label: m.first.evaluations[-1] for m in group.models if m.first.evaluations}
    names = sorted({key for line in last.values() for key in line})
    parts: list[Part] = []
    for word, title in (("bits_per_byte", "Bits per byte"), ("perplexity", "Perplexity")):
        metrics = [Metric(name) for name in text_parts(names, word)]
        if all(len(m.where) == 1 for m in metrics):
            continue  # Nothing but the whole, which is in the table above.
        rows = []
        for m in metrics:
            cells = [m.with_interval(line) if m.name in line else "" for line in last.values()]
            counts = [count_of(last.values(), m.beside(c)) for c in ("tokens", "documents")]
            rows.append([" ".join(m.where[1:]) or "all", *counts, *cells])
        table = Table(
            "components" if word == "bits_per_byte" else f"components_{word}",
            f"{title} of the components of the validation text",
            ["component", "tokens", "documents", *last],
            rows,
            "Last evaluation of each model's first seed. In square brackets: 95% interval over "
            "documents."
            if any("[" in cell for row in rows for cell in row)
            else "",
        )
        parts.append(table)
    return parts


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
        header += [Metric(f"group/{metric}").in_words, "% Gap"]
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
            f"{g.model}, {Metric(f'group/{g.metric}').in_words}: printed {g.printed:.0f}, "
            f"recomputed {g.recomputed:.1f} (rounding allows {g.allowed[0]:.0f} to "
            f"{g.allowed[1]:.0f})"
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
                scale = Metric(metric).kind.scale
                series[model.label] = [(float(n), scale * v) for n, v in points.items()]
        if series:
            picture = plots.curves(series, "loops at evaluation", Metric(metric).axis)
            title = f"Loops at evaluation: {Metric(metric).in_words}"
            parts.append(Figure(_file("loops", metric), title, picture))
    return parts


# Depth.


def _depth(group: TaskGroup) -> list[Part]:
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
            parts.append(Figure(_file("depth", name), f"Depth: {metric.in_words}", picture))
    if rows:
        header = ["metric: series", "depths", "alpha (95%)", "beta", "alpha_loop / alpha_base"]
        note = (
            "Acc = alpha log D + beta by least squares, D the layers passed through; kx1 is depth "
            "by parameters, 4xL depth by loops; a series holds fully trained models that differ in "
            "the plan alone. Intervals from resampling the points; none from fewer than three "
            "depths."
        )
        file = _file("scaling", group.task)
        parts.append(Table(file, "Scaling law (paper, section 3.5)", header, rows, note))
    return parts


def _interval(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f" ({interval[0]:.2f} to {interval[1]:.2f})"


# Isoplots.


def _isoplots(group: TaskGroup) -> list[Part]:
    parts: list[Part] = []
    for metric in group.metrics:
        if not Metric(metric).percent:
            continue
        series, rows = {}, []
        for model in group.models:
            loss: dict[float, float] = dict(zip(*model.first.curve("eval/text/loss"), strict=True))
            points = [
                (loss[step], value) for step, value in _points(model.first, metric) if step in loss
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
                        else [f"{line.slope:.2f}", f"{line.r2:.2f}" if len(points) > 2 else ""]
                    ),
                ]
            )
        if series:
            name = Metric(metric).in_words
            picture = plots.isoplot(series, Metric(metric).axis)
            parts.append(Figure(_file("isoplot", metric), f"Isoplot: {name}", picture))
            header = ["model", "checkpoints", "slope (points per nat)", "R²"]
            note = "Of each model's first seed; two points have a line, and nothing to judge it by."
            parts.append(Table(_file("isoplot", metric), f"Fits: {name}", header, rows, note))
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
        plan = str(record.plan)
        title = record.name if record.name == plan else f"{record.name}: {plan}"
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
                f"{record.flops:.3g}",
                "" if seconds is None else f"{seconds:.3f}",
                "" if seconds is None else f"{tokens / seconds:,.0f}",
                "" if mfu is None else f"{100 * mfu:.1f}",
            ]
        )
    note = (
        "FLOPs are counted from the architecture: of a step at the model's full depth, of all at "
        "the depth that each had; seconds are the median of the logged medians."
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
