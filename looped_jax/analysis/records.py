"""Runs as they lie on disk: what each is, what it measured, and what is missing."""

import dataclasses
import functools
import json
import statistics
from collections.abc import Sequence
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from looped_jax import config as config_lib
from looped_jax.data.json_text import sound_lines
from looped_jax.data.text import SPLITS
from looped_jax.errors import UserError
from looped_jax.evaluation.intervals import Interval
from looped_jax.evaluation.metric_table import Metric
from looped_jax.models.loop_plan import LoopPlan
from looped_jax.storage.appended import Appended
from looped_jax.training.checkpoint import saved_steps
from looped_jax.training.identity import data_identity, measured_on, read_run_file
from looped_jax.training.job import Job, planned_step_flops
from looped_jax.training.metrics_file import read_metrics
from looped_jax.training.run import reading
from looped_jax.training.stacking import stages
from looped_jax.training.sweep import listed_runs

# Where `looped_jax.evaluate` keeps what it measured on held-out rows.
EVALUATIONS = "evaluations/held_out.jsonl"
UNKNOWN = "not recorded"
# Of data: how it is read, and where it lies, neither of which is what it is.
READING = ("data.read_threads",)
PLACE = (
    *("data.path", "data.sources", "data.vocabulary"),
    *(f"data.{split}_files" for split in SPLITS),
    *(f"data.{column}_column" for column in ("text", "prompt", "component")),
    "data.document_separator",
)
CONTENT = "content"
# What identifies the parameters and the rows there.
MEASURED_ON = ("checkpoint", "data")


@dataclasses.dataclass(frozen=True)
class Record:
    """One run with at least one line of metrics."""

    name: str
    workdir: epath.Path
    config: ConfigDict
    lines: tuple[dict[str, float], ...]

    @functools.cached_property
    def plan(self) -> LoopPlan:
        return LoopPlan.parse(self.config.model.plan)

    @functools.cached_property
    def job(self) -> Job:
        """The run made concrete on whatever devices are here, without its data."""
        return reading(self.config)

    @functools.cached_property
    def provenance(self) -> dict[str, Any]:
        """What is known of what made it, see training/identity.py; empty if nothing is."""
        return read_run_file(self.workdir) or {}

    @property
    def numerics(self) -> str:
        """The format of its numbers, see models/format.py: equal configs of different formats
        compute different numbers."""
        return str(self.provenance.get("numerics_format", UNKNOWN))

    @property
    def data(self) -> dict[str, Any]:
        """What it was trained and evaluated on: by content where that was recorded, else by the
        keys that say where it lies."""
        keys = dict(config_lib.flatten({"data": self.config.data}))
        content = data_identity(self.provenance)
        unlike = READING if content is None else READING + PLACE
        kept = {key: value for key, value in keys.items() if key not in unlike}
        return kept if content is None else kept | {CONTENT: content}

    @property
    def loops(self) -> int:
        """Loop count of the looped segments, 1 if there is none."""
        return max(segment.loops for segment in self.plan.segments)

    @property
    def parameters(self) -> int:
        return self.job.layout.parameter_count

    @functools.cached_property
    def step_flops(self) -> float:
        """Model FLOPs of its mean training step, whose batch ``job`` does not have."""
        return planned_step_flops(self.config)

    @functools.cached_property
    def flops(self) -> float:
        """Model FLOPs of all its steps until now, each at the depth of its stage
        (config.stacking)."""
        begun = [stage for stage in stages(self.config) if stage.begin < self.step]
        return sum(
            planned_step_flops(stage.config) * (min(stage.end, self.step) - stage.begin)
            for stage in begun
        )

    @property
    def task(self) -> str:
        return str(self.config.data.task)

    @property
    def step(self) -> int:
        return int(self.lines[-1]["step"])

    @property
    def seed(self) -> int:
        return int(self.config.seed)

    @property
    def examples(self) -> int | None:
        """What an accuracy is measured on; None for language models, whose tasks have numbers of
        their own."""
        return None if self.task == "text" else int(self.config.eval.examples)

    @property
    def evaluations(self) -> list[dict[str, float]]:
        """The lines with evaluations, in the order of their steps."""
        return [line for line in self.lines if any(key.startswith("eval/") for key in line)]

    def curve(self, metric: str) -> tuple[list[int], list[float]]:
        """Steps and values of a metric."""
        points = [(int(line["step"]), line[metric]) for line in self.lines if metric in line]
        return [step for step, _ in points], [value for _, value in points]

    def last(self, metric: str) -> float | None:
        values = self.curve(metric)[1]
        return values[-1] if values else None

    def noise(self, metric: str) -> Interval | None:
        """The 95% interval of its last value, over what it was measured on; None if not known."""
        lines = [line for line in self.lines if metric in line]
        return Metric(metric).noise(lines[-1], self.examples) if lines else None

    @property
    def checkpoint(self) -> int | None:
        """Step of the newest checkpoint."""
        steps = saved_steps(self.workdir)
        return steps[-1] if steps else None

    @property
    def step_seconds(self) -> float | None:
        """Median over the logged medians."""
        seconds = self.curve("perf/step_seconds_p50")[1]
        return statistics.median(seconds) if seconds else None

    def by_loops(self, metric: str) -> dict[int, float]:
        """Loop count at evaluation -> the metric on validation rows at the newest checkpoint
        evaluated so: of lines that measured the run as it was trained, on the rows that it was
        evaluated on while training, those of the same parameters and rows as the newest."""
        known = measured_on(self.provenance)
        own = known.get((Metric(metric).where or ("",))[0])
        lines = [
            line
            for line in read_evaluations(self.workdir)[0]
            if line["split"] == "validation"
            and not line.get("overrides")
            and metric in line["metrics"]
            and (own is None or line.get("data") == json.dumps(own))
        ]
        newest = max((line["step"] for line in lines), default=0)
        lines = [line for line in lines if line["step"] == newest]
        found: dict[int, float] = {}
        for line in lines:
            same = all(line.get(key, "") == lines[-1].get(key, "") for key in MEASURED_ON)
            if same:
                found[line["loops"] or self.loops] = line["metrics"][metric]
        return dict(sorted(found.items()))


def append_evaluation(
    workdir: epath.Path,
    step: int,
    loops: int | None,
    split: str,
    metrics: dict[str, float],
    *,
    overrides: dict[str, Any],
    checkpoint: str,
    data: str,
) -> None:
    """Adds what was measured on held-out rows; later lines of the same kind win.

    ``overrides``: what differed from the run's config; ``checkpoint`` and ``data`` identify the
    parameters and the rows, and are equal only for equal ones.
    """
    path = workdir / EVALUATIONS
    path.parent.mkdir(parents=True, exist_ok=True)
    line: dict[str, Any] = {"step": step, "loops": loops, "split": split}
    line |= {"overrides": overrides, "checkpoint": checkpoint, "data": data, "metrics": metrics}
    with Appended(path) as file:
        file.write(json.dumps(line) + "\n")


def read_evaluations(workdir: epath.Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The lines that append_evaluation wrote, and what is wrong with the others."""
    return sound_lines(workdir / EVALUATIONS, _is_evaluation)


def _is_evaluation(line: dict[str, Any]) -> bool:
    return (
        isinstance(line.get("step"), int)
        and isinstance(line.get("loops", ""), int | None)
        and isinstance(line.get("split"), str)
        and isinstance(line.get("metrics"), dict)
    )


def find_runs(folders: Sequence[str]) -> tuple[list[Record], list[str]]:
    """The runs in these folders (a run, a sweep, or a run with variants), and what is missing.

    UserError for a folder that does not exist, or if there is nothing to report on in any.
    """
    found: dict[epath.Path, str] = {}  # A run that lies in two of the folders counts once.
    for text in folders:
        folder = epath.Path(text)
        if not folder.is_dir():
            raise UserError(f"no folder {folder}")
        for workdir in _workdirs(folder):
            name = workdir.name if len(folders) == 1 else f"{folder.name}/{workdir.name}"
            found.setdefault(workdir.resolve(), folder.name if workdir == folder else name)
    records: list[Record] = []
    missing: list[str] = []
    names = list(found.values())
    for workdir, name in found.items():
        name = name if names.count(name) == 1 else str(workdir)
        record, problems = _read(name, workdir)
        if record is not None:
            records.append(record)
        missing += [f"{name}: {problem}" for problem in problems]
    if not records:
        raise UserError(f"no run to report on in {', '.join(folders)}: " + "; ".join(missing))
    return records, missing


def _workdirs(folder: epath.Path) -> list[epath.Path]:
    if listed := listed_runs(folder):
        return [folder / name for name in listed]
    if (folder / "config.json").exists():
        variants = config_lib.read_config(folder / "config.json").variants
        return [folder / name for name, _ in variants] or [folder]
    inside = sorted(path.parent for path in folder.glob("*/config.json"))
    if not inside:
        raise UserError(f"{folder} holds no run")
    return inside


def _read(name: str, workdir: epath.Path) -> tuple[Record | None, list[str]]:
    """A run and what is wrong with it, if anything."""
    if not (workdir / "config.json").exists():
        return None, ["not started"]
    try:
        config = config_lib.read_config(workdir / "config.json")
        lines = read_metrics(workdir)
    except UserError as error:
        return None, [str(error)]
    if not lines:
        return None, ["has no metrics yet"]
    record = Record(name, workdir, config, tuple(lines))
    problems = read_evaluations(workdir)[1]
    if not record.evaluations:
        problems.insert(0, f"has no evaluation (stopped at step {record.step})")
    elif record.step < config.train.steps:
        problems.insert(0, f"stopped at step {record.step} of {config.train.steps}")
    return record, problems
