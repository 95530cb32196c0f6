"""Compares the runs of one command: a table, a plot of the metric against steps, a sentence."""

import csv
import dataclasses
import io

import matplotlib

matplotlib.use("Agg")  # No display needed.

import matplotlib.pyplot as plt
from etils import epath
from ml_collections import ConfigDict

from looped_jax.analysis.text_table import aligned
from looped_jax.config import RunError
from looped_jax.models.loop_plan import LoopPlan
from looped_jax.training.metrics import read_metrics

# Looped counts as equal to iso-FLOP within this many points of accuracy.
EQUAL_POINTS = 3.0


@dataclasses.dataclass(frozen=True)
class Run:
    """One finished run: what it is and the compared metric over its steps."""

    name: str
    plan: LoopPlan
    parameters: int
    flops: int  # Of one training step.
    steps: tuple[int, ...]
    values: tuple[float, ...]

    @property
    def last(self) -> float:
        return self.values[-1]


def read_curve(workdir: epath.Path, metric: str) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Steps and values of a metric; RunError names the run and the metrics there are."""
    lines = read_metrics(workdir)
    points = [(int(line["step"]), line[metric]) for line in lines if metric in line]
    if not points:
        there = sorted({name for line in lines for name in line} - {"step"})
        raise RunError(f"{workdir} has no metric {metric!r}; it has {', '.join(there) or 'none'}")
    steps, values = zip(*points, strict=True)
    return steps, values


def table(runs: list[Run], metric: str) -> str:
    """A table for the terminal: plan, parameters, FLOPs of a step, the metric at the end."""
    header = ["run", "plan", "parameters", "FLOPs/step", metric]
    rows = [
        [r.name, str(r.plan), f"{r.parameters:,}", f"{r.flops:.3g}", _show(r.last, metric)]
        for r in runs
    ]
    return aligned([header, *rows], left=2)


def components_table(workdirs: dict[str, epath.Path]) -> str:
    """Perplexity and bits per byte of each run's last evaluation of text, for all of it and for
    each of its components; empty where no text was evaluated."""
    last = {name: last_evaluation(workdir) for name, workdir in workdirs.items()}
    prefix, suffix = "eval/text/", "bits_per_byte"
    parts = [
        key.removeprefix(prefix).removesuffix(suffix)
        for key in next(iter(last.values()))
        if key.startswith(prefix) and key.endswith(suffix)
    ]
    if not parts:
        return ""
    header = ["perplexity (bits per byte)", *last]
    rows = [
        [
            part.removesuffix("/") or "all",
            *(
                f"{m[f'{prefix}{part}perplexity']:.3f} ({m[prefix + part + suffix]:.3f})"
                for m in last.values()
            ),
        ]
        for part in parts
    ]
    return aligned([header, *rows], left=1)


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
    writer.writerow(["run", "plan", "parameters", "flops_per_step", "step", metric])
    for r in runs:
        writer.writerow([r.name, r.plan, r.parameters, r.flops, r.steps[-1], r.last])
    return out.getvalue()


def sentence(runs: list[Run], comparison: ConfigDict) -> str:
    """What these runs show about looping, in their own numbers.

    Looping is credited when the looped model is within EQUAL_POINTS of the iso-FLOP model (or
    above it) and closer to it than to the iso-parameter base; otherwise the sentence says not.
    """
    by_name = {run.name: run for run in runs}
    base, looped, iso_flop = (by_name[comparison[r]] for r in ("base", "looped", "iso_flop"))
    metric = comparison.metric
    shown = {run.name: _show(run.last, metric) for run in (base, looped, iso_flop)}
    gap = 100 * (iso_flop.last - looped.last)
    gained = looped.last - base.last > iso_flop.last - looped.last
    verdict = (
        "depth by looping did what depth by parameters does"
        if gap <= EQUAL_POINTS and gained
        else "looping did not do what more parameters do in this run"
    )
    return (
        f"{looped.plan} reaches {shown[looped.name]} with the parameters of {base.plan} "
        f"({shown[base.name]}) and the FLOPs of {iso_flop.plan} ({shown[iso_flop.name]}, "
        f"{iso_flop.parameters / looped.parameters:.1f} times the parameters): {verdict}."
    )


def plot(runs: list[Run], metric: str, title: str, path: epath.Path) -> None:
    """Writes a PNG of the metric against steps, one line a run, labelled at its end."""
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    percent = 100 if _is_accuracy(metric) else 1
    for run in runs:
        label = f"{run.name}: {run.plan}, {run.parameters / 1e3:,.0f}k parameters"
        axes.plot(run.steps, [percent * v for v in run.values], marker="o", ms=3, label=label)
    axes.set_xlabel("training step")
    axes.set_ylabel("exact match on held-out examples (%)" if percent == 100 else metric)
    if percent == 100:
        axes.set_ylim(-2, 102)
    axes.set_xlim(left=0)
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend(loc="best", frameon=False)
    with path.open("wb") as file:
        figure.savefig(file, format="png", dpi=150)
    plt.close(figure)


def _is_accuracy(metric: str) -> bool:
    return metric.endswith("/accuracy")


def _show(value: float, metric: str) -> str:
    return f"{100 * value:.1f}%" if _is_accuracy(metric) else f"{value:.4f}"
