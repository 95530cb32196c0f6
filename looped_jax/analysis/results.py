"""The tables of what the models of a task reach: all of them, and of text its components."""

from looped_jax.analysis import published
from looped_jax.analysis.curve_figures import OF_A_RUN, file_name, of_a_run
from looped_jax.analysis.document import Numbers, Table
from looped_jax.analysis.groups import Model, TaskGroup, metric_curve, noise_of
from looped_jax.analysis.headline import some_models
from looped_jax.evaluation.intervals import binomial_interval
from looped_jax.evaluation.metric_table import Metric, count_of, text_parts

GAP = (
    "% Gap = (looped - base) / (iso-FLOP - base) x 100, where kx1 is the base of kxL and (kL)x1 "
    "its iso-FLOP model; empty where one of them that differs in the plan alone is not among the "
    "runs, or the iso-FLOP model is not better than the base by more than noise."
)


def main_table(group: TaskGroup) -> Table:
    """What each model reaches, beside its name where a phone shows it; then what it is."""
    seeds = max(len(model.records) for model in group.models)
    columns = [("model", [model.label for model in group.models])]
    marked = set()
    for metric in group.metrics:
        if (best := group.best(metric)) and len(group.compared(metric)) > 1:
            marked.add((group.models.index(best), len(columns)))
        columns.append((Metric(metric).heading, [_value(m, metric) for m in group.models]))
        paper = [_published(m, metric) for m in group.models]
        if any(value is not None for value in paper):
            columns.append(("paper", ["" if v is None else f"{v:.1f}" for v in paper]))
        gaps = [group.gap(m, metric) for m in group.models]
        if any(gap is not None for gap in gaps):
            columns.append(("% Gap", ["" if gap is None else f"{gap:.0f}" for gap in gaps]))
    columns += [
        ("parameters", [f"{m.first.parameters:,}" for m in group.models]),
        ("FLOPs/step", [f"{m.first.step_flops:.3g}" for m in group.models]),
        ("depth", [str(m.plan.effective_depth) for m in group.models]),
    ]
    if seeds > 1:
        columns.append(("seeds", [str(len(m.records)) for m in group.models]))
    notes = ["Last evaluation of each run"]
    notes[0] += ", mean over seeds (lowest to highest)." if seeds > 1 else "."
    notes += _marks(group) if marked else []
    notes += [GAP, _noise(group, group.metrics)]
    return Table(
        file_name("results", group.task),
        f"Models on {group.title}",
        [heading for heading, _ in columns],
        list(zip(*(cells for _, cells in columns), strict=True)),
        " ".join(filter(None, notes)),
        marked,
        _numbers(group),
    )


def _marks(group: TaskGroup) -> list[str]:
    """What the marks say, and which models they might as well stand at."""
    near = {metric: group.near_best(metric) for metric in group.metrics}
    everyone = all(len(group.compared(metric)) == len(group.models) for metric in group.metrics)
    who = "the best model" if everyone else "the best of the models evaluated at the latest step"
    if not any(near.values()):
        others = "every other" if everyone else "the others of these"
        return [f"Marked: {who}, better than {others} by more than noise."]
    of_metrics = [
        (f"{Metric(metric).in_words}: " if len(near) > 1 else "") + some_models(models)
        for metric, models in near.items()
        if models
    ]
    return [f"Marked: {who}; within the noise of it: {' | '.join(of_metrics)}."]


def _numbers(group: TaskGroup) -> Numbers:
    """The last value of every run and metric with its 95% interval, as stored."""
    size = ("parameters", "flops_per_step")
    header = (*OF_A_RUN, *size, "step", "metric", "value", "low_95", "high_95")
    rows = []
    for metric in group.metrics:
        for model in group.models:
            for record in model.records:
                if curve := metric_curve(record, metric):
                    of_run = (record.parameters, record.step_flops, curve[-1][0], metric)
                    noise = noise_of(record, metric) or ("", "")
                    rows.append((*of_a_run(model, record), *of_run, curve[-1][1], *noise))
    return Numbers(header, rows)


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


def components(group: TaskGroup) -> list[Table]:
    """Bits per byte, and perplexity, of every component of the validation text and of all of it,
    each model's first seed, and how much text that is."""
    last = {m.label: m.first.evaluations[-1] for m in group.models if m.first.evaluations}
    names = sorted({key for line in last.values() for key in line})
    parts: list[Table] = []
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
