"""Compares the runs of one command: a table, a plot of the metric against steps, a sentence."""

import csv
import dataclasses
import io

from etils import epath
from ml_collections import ConfigDict

from looped_jax.analysis import plots
from looped_jax.analysis.groups import distinguishing_keys, short
from looped_jax.analysis.text_table import aligned
from looped_jax.errors import RunError
from looped_jax.evaluation.intervals import Interval
from looped_jax.evaluation.metric_table import (
    Measured,
    Metric,
    clear_gain,
    count_of,
    counted,
    text_parts,
)
from looped_jax.models.loop_plan import LoopPlan
from looped_jax.training.identity import data_identity, read_run_file
from looped_jax.training.metrics_file import read_metrics


@dataclasses.dataclass(frozen=True)
class Run:
    """One finished run: what it is and the compared metric over its steps."""

    name: str
    config: ConfigDict
    parameters: int
    flops: float  # Of one training step.
    steps: tuple[int, ...]
    values: tuple[float, ...]
    noise: Interval | None  # Of the last value, over what it was measured on.
    data: str = ""  # Equal for runs trained and evaluated on the same.

    @property
    def plan(self) -> LoopPlan:
        return LoopPlan.parse(self.config.model.plan)

    @property
    def last(self) -> float:
        return self.values[-1]

    @property
    def measured(self) -> Measured:
        return self.last, self.noise


def read_run(
    name: str, workdir: epath.Path, config: ConfigDict, parameters: int, flops: float, metric: str
) -> Run:
    """A run with its metric; RunError names the run and the metrics there are."""
    lines = read_metrics(workdir)
    having = [line for line in lines if metric in line]
    if not having:
        there = sorted({name for line in lines for name in line} - {"step"})
        raise RunError(f"{workdir} has no metric {metric!r}; it has {', '.join(there) or 'none'}")
    # Of a language model, tasks have numbers of examples of their own.
    examples = None if config.data.task == "text" else config.eval.examples
    noise = Metric(metric).noise(having[-1], examples)
    steps = tuple(int(line["step"]) for line in having)
    values = tuple(line[metric] for line in having)
    data = data_identity(read_run_file(workdir)) or str(config.data.path or config.data.sources)
    return Run(name, config, parameters, flops, steps, values, noise, data)


def table(runs: list[Run], metric: str) -> str:
    """A table for the terminal: plan, parameters, FLOPs of a step, the metric at the end and its
    noise where that is known."""
    noisy = any(r.noise for r in runs)
    header = ["run", "plan", "parameters", "FLOPs/step", metric] + ["95%"] * noisy
    rows = [
        [
            *(r.name, str(r.plan), f"{r.parameters:,}", f"{r.flops:.3g}"),
            Metric(metric).with_unit(r.last),
            *([Metric(metric).span(r.noise) if r.noise else ""] * noisy),
        ]
        for r in runs
    ]
    return aligned([header, *rows], left=2)


def components_table(workdirs: dict[str, epath.Path]) -> str:
    """Perplexity, its interval, and bits per byte of each run's last evaluation of text, for all of
    it and for each of its components, with the tokens and documents behind them; empty where no
    text was evaluated."""
    last = {name: last_evaluation(workdir) for name, workdir in workdirs.items()}
    parts = text_parts(sorted({key for line in last.values() for key in line}), "perplexity")
    if not parts:
        return ""
    counts = [c for c in ("tokens", "documents") if counted(last.values(), parts, c)]
    header = ["text", *counts, *(f"{name}: perplexity (bits per byte)" for name in last)]
    rows = []
    for part in map(Metric, parts):
        row = [" ".join(part.where[1:]) or "all"]
        row += [count_of(last.values(), part.beside(c)) for c in counts]
        rows.append([*row, *(_perplexity(line, part) for line in last.values())])
    return aligned([header, *rows], left=1)


def _perplexity(line: dict[str, float], part: Metric) -> str:
    if part.name not in line:
        return ""
    cell = part.with_interval(line)
    bits = Metric(part.beside("bits_per_byte"))
    return f"{cell} ({bits.shown(line[bits.name])})" if bits.name in line else cell


def last_evaluation(workdir: epath.Path) -> dict[str, float]:
    """The metrics of a run's last evaluation; RunError if it has none."""
    for line in reversed(read_metrics(workdir)):
        if any(name.startswith("eval/") for name in line):
            return line
    raise RunError(f"{workdir} has no evaluation")


def to_csv(runs: list[Run], metric: str) -> str:
    """The table's numbers in full, one line a run."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        ["run", "plan", "parameters", "flops_per_step", "step", metric, "low_95", "high_95"]
    )
    for r in runs:
        noise = r.noise or ("", "")
        writer.writerow([r.name, r.plan, r.parameters, r.flops, r.steps[-1], r.last, *noise])
    return out.getvalue()


def sentence(runs: list[Run], comparison: ConfigDict) -> str:
    """What these runs show about looping, in their own numbers.

    Looping is credited where the iso-FLOP model is better than the base, so that there is
    something to match, and the looped model too, by more than noise; and the looped model is within
    the tolerance of the iso-FLOP model (or better) and closer to it than to the base; with a part,
    in percent of the way (the paper's % Gap), where both are better than the base. The sentence
    says `not shown` and why where the numbers carry neither this nor its opposite.
    """
    by_name = {run.name: run for run in runs}
    base, looped, iso_flop = (by_name[comparison[r]] for r in ("base", "looped", "iso_flop"))
    metric = Metric(comparison.metric)
    shown = {run.name: metric.with_unit(run.last) for run in (base, looped, iso_flop)}
    return (
        f"{looped.plan} reaches {shown[looped.name]} with "
        f"{_times(looped.parameters, base.parameters, 'parameters')} {base.plan} "
        f"({shown[base.name]}) and {_times(looped.flops, iso_flop.flops, 'FLOPs')} {iso_flop.plan} "
        f"({shown[iso_flop.name]}, {iso_flop.parameters / looped.parameters:.1f} times the "
        f"parameters): {_verdict(metric, base, looped, iso_flop)}."
    )


def _times(value: float, reference: float, of: str) -> str:
    """`the FLOPs of`, or how many times as many where they are not alike."""
    ratio = value / reference
    return f"the {of} of" if abs(ratio - 1) < 0.05 else f"{ratio:.2g} times the {of} of"


def _verdict(metric: Metric, base: Run, looped: Run, iso_flop: Run) -> str:
    if reason := _why_not_shown(metric, base, looped, iso_flop):
        return f"not shown what looping does: {reason}"
    behind = metric.gain(iso_flop.last, looped.last)
    gained = metric.gain(looped.last, base.last)
    gains = clear_gain(metric, looped.measured, base.measured)
    if gains and behind <= metric.tolerance(iso_flop.last) and gained > behind:
        return "depth by looping did what depth by parameters does"
    if clear_gain(metric, iso_flop.measured, looped.measured):
        if not gains:
            return "looping did not do what more parameters do in this run"
        share = 100 * gained / (gained + behind)  # The paper's % Gap.
        return (
            f"looping did a part of what more parameters do, {share:.0f}% of the way from "
            f"{base.plan} to {iso_flop.plan}"
        )
    return (
        f"not shown what looping does: {looped.plan} cannot be told from "
        f"{iso_flop.plan if gains else base.plan}, nor counted as equal to {iso_flop.plan}, within "
        "the noise"
    )


def _why_not_shown(metric: Metric, base: Run, looped: Run, iso_flop: Run) -> str:
    """What makes a verdict impossible whatever looping did; empty if nothing does."""
    if metric.kind.higher_is_better is None:
        return f"{metric.name} has no better and worse"
    runs = (base, looped, iso_flop)
    if len({run.data for run in runs}) > 1:
        return "the runs were not trained and evaluated on the same data"
    keys = [key for key in distinguishing_keys([r.config for r in runs]) if key != "model.plan"]
    if keys:
        settings = " | ".join(", ".join(short(r.config, key) for key in keys) for r in runs)
        return f"the runs differ in more than the plan ({settings})"
    if metric.chance is not None and all(_near_chance(metric, run) for run in runs):
        return f"all are near chance ({metric.with_unit(metric.chance)})"
    if clear_gain(metric, iso_flop.measured, base.measured):
        return ""
    beyond = f"better than {base.plan} by more than the noise"
    if clear_gain(metric, looped.measured, base.measured):
        return f"{iso_flop.plan} is not {beyond}, so that there is nothing to match"
    return f"neither {looped.plan} nor {iso_flop.plan} is {beyond}"


def _near_chance(metric: Metric, run: Run) -> bool:
    """Whether so little above chance, given its noise, that it may have learned next to nothing."""
    low = run.noise[0] if run.noise else run.last
    return metric.chance is not None and low <= metric.chance + metric.tolerance(metric.chance)


def plot(runs: list[Run], metric: str, title: str, path: epath.Path) -> None:
    """Writes a PNG of the metric against steps, one line a run."""
    scale = Metric(metric).kind.scale
    lines = [
        plots.Curve(
            f"{run.name}: {run.plan}, {run.parameters / 1e3:,.0f}k parameters",
            [(step, scale * value) for step, value in zip(run.steps, run.values, strict=True)],
        )
        for run in runs
    ]
    y_range = (-2.0, 102.0) if Metric(metric).percent else None
    axis = Metric(metric).axis
    path.write_bytes(plots.curves(lines, "training step", axis, title=title, y_range=y_range))
