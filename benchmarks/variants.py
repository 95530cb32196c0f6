"""The fair table: the arms of experiments/sweeps/variants_small.py, or of variants_text_small.py.

Of each arm the learning rate is that with the best last evaluation of the tuning seed, on
validation rows; what is reported is measured here, of the other seeds at this rate, on test rows:
at several loop counts and, of a synthetic task, on longer problems. An arm is its mean over seeds
and the lowest and highest of them. A rate at an end of the grid is marked: the arm might do better
beyond it. The table is shown three ways: all arms, trained with equal FLOPs; those of them with as
many parameters as the plain loop; those with its FLOPs and cache at inference.

    python -m benchmarks.variants --runs=runs/variants_small --tasks=group_s3_n7,group_s3_n9
    python -m benchmarks.variants --runs=runs/variants_text_small
"""

import argparse
import dataclasses
import pathlib
import statistics
from collections.abc import Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from tqdm import tqdm

from benchmarks.common import RESULTS, machine, save
from experiments.sweeps.variants_small import ARMS, SEEDS, TUNING
from looped_jax.analysis.records import Record, find_runs
from looped_jax.evaluation.held_out import Evaluator
from looped_jax.evaluation.metric_table import Metric
from looped_jax.inference.cache import cache_bytes
from looped_jax.models.flops import forward_flops
from looped_jax.training.evaluations import held_out_sets
from looped_jax.training.run import open_run

LOOPS = (1, 2, 3, 4, 6, 8)
MORE = 6  # What the picture shows beside the loops of training.
PER_ARM = ("parameters", "token_flops", "cache_bytes")  # Costs that the tables show.
# Costs of which the arms of a view have as much as the plain loop, up to SAME.
VIEWS = {
    "equal training FLOPs": ("training_flops",),
    "equal parameters": ("parameters",),
    "equal inference FLOPs and cache": ("token_flops", "cache_bytes"),
}
SAME = 0.1
PLAIN = "plain"
IMAGES = pathlib.Path(__file__).parents[1] / "docs" / "images"


@dataclasses.dataclass(frozen=True)
class Arm:
    """The runs of an arm at its best rate, one per seed."""

    name: str
    rate: float
    at_an_end: bool
    records: tuple[Record, ...]

    @property
    def seen(self) -> dict[str, Any]:
        """What it has and what it costs: FLOPs of all training and of a token in its context,
        bytes of a token in the cache."""
        record, model = self.records[0], self.records[0].job.model.config
        once = forward_flops(model, 1, model.max_length) / model.max_length
        return {
            "plan": str(record.plan),
            "learning_rate": self.rate,
            "rate_at_an_end": self.at_an_end,
            "parameters": record.parameters,
            "steps": record.config.train.steps,
            "training_flops": record.step_flops * record.config.train.steps,
            "token_flops": once,
            "cache_bytes": cache_bytes(model, 1, 1),
        }


def best_arms(records: Sequence[Record], metric: str) -> list[Arm]:
    """Each arm at the rate at which the tuning seed ended with the best ``metric``, with the runs
    of the measuring seeds at that rate, in the order of ARMS; SystemExit if one is not there."""
    tuning: dict[str, dict[float, float]] = {}
    measuring: dict[tuple[str, float], dict[int, Record]] = {}
    for record in records:
        if record.step < record.config.train.steps:
            raise SystemExit(f"{record.name} has not finished; the sweep's command goes on with it")
        name, rate = record.name.partition("_lr")[0], record.config.optimizer.learning_rate
        value = record.last(metric)
        assert value is not None, metric
        if record.seed == TUNING:
            tuning.setdefault(name, {})[rate] = value
        else:
            measuring.setdefault((name, rate), {})[record.seed] = record
    better = max if Metric(metric).kind.higher_is_better else min
    arms = []
    for name in sorted(tuning, key=list(ARMS).index):
        values = tuning[name]
        best = better(values, key=lambda rate: values[rate])
        runs = measuring.get((name, best), {})
        if set(runs) != set(SEEDS):
            raise SystemExit(
                f"{name}: its best rate is {best:g}, where seeds {SEEDS} are to be measured; there "
                f"are {sorted(runs)}: TUNED of the sweep has to say so, and the sweep to run again"
            )
        ends = (min(values), max(values))
        arms.append(Arm(name, best, best in ends, tuple(runs[seed] for seed in SEEDS)))
    return arms


def measured(record: Record, tasks: Sequence[str]) -> dict[str, dict[int, float]]:
    """Task -> loops -> the headline metric on test rows of the newest checkpoint."""
    overrides = {"eval.tasks": ",".join(tasks)} if tasks else {}
    run = open_run(str(record.workdir), None, overrides)
    params, job = run.parameters(), run.job
    sets = held_out_sets(job, "test")
    counts: Sequence[int | None] = LOOPS if job.model.config.plan.looped else (None,)
    found: dict[str, dict[int, float]] = {}
    for loops in counts:
        evaluator = Evaluator(job.model, job.mesh, job.rules, loops)
        for held_out in sets:
            metrics = evaluator(params, held_out) or {}
            name = f"eval/{held_out.name}/"
            value = metrics.get(f"{name}accuracy", metrics.get(f"{name}bits_per_byte"))
            assert value is not None
            found.setdefault(held_out.name, {})[loops or record.loops] = value
    return found


def in_percent(task: str) -> bool:
    """Whether its headline metric is exact match, where more is better; else bits per byte."""
    return task != "text"


def shown(values: Sequence[float], percent: bool) -> str:
    """Mean (lowest to highest)."""
    scale, form = (100.0, ".1f") if percent else (1.0, ".3f")
    mean, low, high = (
        f"{scale * x:{form}}" for x in (statistics.fmean(values), min(values), max(values))
    )
    return f"{mean} ({low} to {high})"


def alike(arms: dict[str, dict[str, Any]], costs: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The arms whose ``costs`` are within SAME of the plain loop's."""
    of_plain = arms[PLAIN]["seen"]
    return {
        name: arm
        for name, arm in arms.items()
        if all(abs(arm["seen"][c] / of_plain[c] - 1.0) <= SAME for c in costs)
    }


def view(arms: dict[str, dict[str, Any]], of: Sequence[str], tasks: Sequence[str]) -> str:
    """Markdown: the arms that are ``alike``, best first, with what they cost beside the plain loop
    and what each task gives as they were trained."""
    of_plain = arms[PLAIN]["seen"]
    percent = in_percent(tasks[0])
    heads = ["arm", "plan", "lr", "steps", "parameters", "FLOPs a token", "cache", *tasks]

    def result(arm: dict[str, Any], task: str) -> list[float]:
        values: list[float] = arm["values"][task][str(arm["loops"])]
        return values

    lines = ["| " + " | ".join(heads) + " |", "|---|---" + "|---:" * (len(heads) - 2) + "|"]
    order = sorted(
        alike(arms, of).items(),
        key=lambda item: statistics.fmean(result(item[1], tasks[0])),
        reverse=percent,
    )
    for name, arm in order:
        seen = arm["seen"]
        cells = [name, f"`{seen['plan']}`"]
        cells += [f"{seen['learning_rate']:g}" + ("*" if seen["rate_at_an_end"] else "")]
        cells += [f"{seen['steps']:,}"]
        cells += [f"{seen[cost] / of_plain[cost]:.2f}" for cost in PER_ARM]
        cells += [shown(result(arm, task), percent) for task in tasks]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def over_loops(arms: dict[str, dict[str, Any]], task: str) -> str:
    """Markdown: means at each of LOOPS of the arms that have loops."""
    heads = ["arm", "trained", *(f"{n}" for n in LOOPS)]
    lines = ["| " + " | ".join(heads) + " |", "|---" + "|---:" * (len(heads) - 1) + "|"]
    for name, arm in arms.items():
        by_loops = arm["values"][task]
        if len(by_loops) > 1:
            cells = [name, str(arm["loops"])]
            cells += [mean_of(by_loops[str(n)], in_percent(task)) for n in LOOPS]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def mean_of(values: Sequence[float], percent: bool) -> str:
    """Their mean as a table shows it."""
    mean = statistics.fmean(values)
    return f"{100 * mean:.1f}" if percent else f"{mean:.3f}"


def picture(arms: dict[str, dict[str, Any]], tasks: Sequence[str], to: Any) -> None:
    """For each task, every arm as trained, and with MORE loops: its seeds and their mean."""
    figure, axes = plt.subplots(
        1,
        len(tasks),
        figsize=(3.2 + 3.0 * len(tasks), 1.0 + 0.3 * len(arms)),
        sharey=True,
        layout="constrained",
        squeeze=False,
    )
    percent = in_percent(tasks[0])
    scale = 100.0 if percent else 1.0
    for axis, task in zip(axes[0], tasks, strict=True):
        for place, arm in enumerate(arms.values()):
            for loops, color, aside in ((arm["loops"], "tab:blue", -0.15), (MORE, "tab:red", 0.15)):
                values = [scale * x for x in arm["values"][task].get(str(loops), ())]
                if values:
                    axis.plot(values, [place + aside] * len(values), "o", ms=4, alpha=0.5, c=color)
                    axis.plot([statistics.fmean(values)], [place + aside], "|", ms=10, c=color)
        axis.set_xlabel(f"{task}, {'exact match, %' if percent else 'bits per byte'}")
        axis.grid(alpha=0.3)
        axis.set_axisbelow(True)
    axes[0][0].set_yticks(range(len(arms)), arms)
    axes[0][0].invert_yaxis()
    marks = [
        plt.Line2D([], [], marker="o", ls="", color=color, label=label)
        for color, label in (("tab:blue", "loops as trained"), ("tab:red", f"{MORE} loops"))
    ]
    figure.legend(handles=marks, loc="outside upper center", ncols=2, frameon=False)
    figure.savefig(to, dpi=140, metadata={"Software": None})
    plt.close(figure)


def main() -> None:
    """Measures, saves, prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", required=True)
    parser.add_argument("--tasks", default="")
    arguments = parser.parse_args()
    records, missing = find_runs([arguments.runs])
    if missing:
        raise SystemExit("; ".join(missing))
    task = records[0].task
    tasks = [name for name in arguments.tasks.split(",") if name] or [task]
    metric = f"eval/{task}/{'accuracy' if in_percent(task) else 'loss'}"
    arms: dict[str, dict[str, Any]] = {}
    for arm in tqdm(best_arms(records, metric), unit="arm"):
        values: dict[str, dict[str, list[float]]] = {}
        for record in arm.records:
            for name, by_loops in measured(record, tasks).items():
                for loops, value in by_loops.items():
                    values.setdefault(name, {}).setdefault(str(loops), []).append(value)
        arms[arm.name] = {"seen": arm.seen, "loops": arm.records[0].loops, "values": values}
    name = pathlib.Path(arguments.runs).name
    grid = {r.name: r.last(metric) for r in records}
    save(name, {"machine": machine(), "metric": metric, "arms": arms, "grid": grid})
    for title, costs in VIEWS.items():
        print(f"\n{title}\n\n{view(arms, costs, tasks)}")
    for name_of_task in tasks:
        print(f"\nat other numbers of loops, {name_of_task}\n\n{over_loops(arms, name_of_task)}")
    picture(arms, tasks, IMAGES / f"{name}.png")
    print(f"\nsaved {RESULTS / name}.json, {IMAGES / name}.png")


if __name__ == "__main__":
    main()
