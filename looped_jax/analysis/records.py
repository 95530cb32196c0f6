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
from looped_jax.config import UserError, default_config
from looped_jax.models.flops import train_flops
from looped_jax.models.loop_plan import LoopPlan
from looped_jax.training.checkpoint import saved_steps
from looped_jax.training.metrics import read_metrics
from looped_jax.training.sweep import listed_runs
from looped_jax.training.trainer import Job, prepare

# Where `looped_jax.evaluate` keeps what it measured on held-out rows.
EVALUATIONS = "evaluations/held_out.jsonl"


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
        """The run made concrete on one device of whatever kind is here, without its data."""
        here = ConfigDict(self.config.to_dict())
        here.mesh = default_config().mesh
        here.model.update(attention="auto", gather="layer")
        return prepare(here.lock(), needs_data=False)

    @property
    def loops(self) -> int:
        """Loop count of the looped segments, 1 if there is none."""
        return max(segment.loops for segment in self.plan.segments)

    @property
    def parameters(self) -> int:
        return self.job.layout.parameter_count

    @property
    def step_flops(self) -> int:
        model = self.job.model.config
        return train_flops(model, self.config.train.batch_size, model.max_length)

    @property
    def task(self) -> str:
        return str(self.config.data.task)

    @property
    def step(self) -> int:
        return int(self.lines[-1]["step"])

    @property
    def label(self) -> str:
        """What sets the model apart: its plan, and how it was trained if not plainly."""
        parts = [str(self.plan)]
        if self.config.regularizer.block:
            reg = self.config.regularizer
            parts.append(f"reg k={reg.block} λ={reg.strength:g}")
        if self.config.stacking.block:
            parts.append(f"stacked by {self.config.stacking.block}")
        return ", ".join(parts)

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
        evaluated so."""
        path = self.workdir / EVALUATIONS
        lines = (
            [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        )
        lines = [line for line in lines if line["split"] == "validation"]
        newest = max((line["step"] for line in lines), default=0)
        found: dict[int, float] = {}
        for line in lines:
            if line["step"] == newest and metric in line["metrics"]:
                found[line["loops"] or self.loops] = line["metrics"][metric]
        return dict(sorted(found.items()))


def append_evaluation(
    workdir: epath.Path, step: int, loops: int | None, split: str, metrics: dict[str, float]
) -> None:
    """Adds what was measured on held-out rows; later lines of the same kind win."""
    path = workdir / EVALUATIONS
    path.parent.mkdir(parents=True, exist_ok=True)
    line: dict[str, Any] = {"step": step, "loops": loops, "split": split, "metrics": metrics}
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")


def find_runs(folders: Sequence[str]) -> tuple[list[Record], list[str]]:
    """The runs in these folders (a run, a sweep, or a run with variants), and what is missing.

    UserError for a folder that does not exist, or if there is nothing to report on in any.
    """
    records: list[Record] = []
    missing: list[str] = []
    for text in folders:
        folder = epath.Path(text)
        if not folder.is_dir():
            raise UserError(f"no folder {folder}")
        for workdir in _workdirs(folder):
            name = workdir.name if len(folders) == 1 else f"{folder.name}/{workdir.name}"
            if workdir == folder:
                name = folder.name
            record, problem = _read(name, workdir)
            if record is not None:
                records.append(record)
            if problem:
                missing.append(f"{name}: {problem}")
    if not records:
        raise UserError(f"no run to report on in {', '.join(folders)}: " + "; ".join(missing))
    return records, missing


def _workdirs(folder: epath.Path) -> list[epath.Path]:
    if listed := listed_runs(folder):
        return [folder / name for name in listed]
    config_file = folder / "config.json"
    if config_file.exists():
        variants = json.loads(config_file.read_text()).get("variants", ())
        return [folder / name for name, _ in variants] or [folder]
    inside = sorted(path.parent for path in folder.glob("*/config.json"))
    if not inside:
        raise UserError(f"{folder} holds no run")
    return inside


def _read(name: str, workdir: epath.Path) -> tuple[Record | None, str]:
    """A run and what is wrong with it, if anything."""
    if not (workdir / "config.json").exists():
        return None, "not started"
    try:
        config = config_lib.from_json((workdir / "config.json").read_text())
        lines = read_metrics(workdir)
    except (ValueError, UserError) as error:
        return None, f"cannot be read ({error})"
    if not lines:
        return None, "has no metrics yet"
    record = Record(name, workdir, config, tuple(lines))
    if not record.evaluations:
        return record, f"has no evaluation (stopped at step {record.step})"
    if record.step < config.train.steps:
        return record, f"stopped at step {record.step} of {config.train.steps}"
    return record, ""
