"""Sweeps: many runs that one short Python file lists, trained in turn or by a scheduler.

A sweep file defines ``get_sweep()``, which returns a tuple of SweepRun. Each run is the folder
WORKDIR/<name>, an ordinary workdir of looped_jax.main; `WORKDIR/sweep.json` lists them all, so that
a report knows of runs that have not started, and `WORKDIR/logs/<name>.txt` keeps what they print.
"""

import dataclasses
import json
import reprlib
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from etils import epath
from ml_collections import ConfigDict
from rich.console import Console
from rich.live import Live
from rich.table import Table

from looped_jax import config as config_lib
from looped_jax.data.files import write_whole
from looped_jax.errors import Preempted, RunError, UserError
from looped_jax.evaluation.metric_table import shown_evaluation
from looped_jax.models.loop_plan import LoopPlan
from looped_jax.training.checkpoint import saved_steps
from looped_jax.training.metrics_file import read_metrics

SWEEP_FILE = "sweep.json"


@dataclasses.dataclass(frozen=True, eq=False)
class SweepRun:
    """One run: the name of its folder, its experiment (FILE.py or FILE.py:ARGUMENT) and what is
    overridden there, e.g. {"train.steps": 2000}."""

    name: str
    config: str
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def load(self) -> ConfigDict:
        """Its config; UserError, naming the run, for whatever is wrong with it."""
        texts = {key: config_lib.to_text(value) for key, value in self.overrides.items()}
        try:
            config = config_lib.load_experiment(self.config, texts)
            LoopPlan.parse(config.model.plan)
        except UserError as error:
            raise UserError(f"run {self.name}: {error}") from error
        if config.variants:
            raise UserError(f"run {self.name}: {self.config} has variants; list them as runs")
        return config

    def command(self, workdir: epath.Path) -> list[str]:
        """What trains it, and goes on with it: arguments after `python -m looped_jax.main`."""
        overrides = [f"--config.{k}={config_lib.to_text(v)}" for k, v in self.overrides.items()]
        return [f"--config={self.config}", f"--workdir={workdir / self.name}", *overrides]


def load_sweep(path: str, overrides: Mapping[str, str]) -> dict[SweepRun, ConfigDict]:
    """The runs of a sweep file with their configs, ``overrides`` applied to each on top.

    UserError for a missing or failing file, a name twice or one that is no folder's, and for any
    run whose config cannot work.
    """
    runs = config_lib.call(path, config_lib.load_function(path, "get_sweep", "sweep"))
    if not isinstance(runs, tuple) or not all(isinstance(run, SweepRun) for run in runs):
        raise UserError(f"{path}: get_sweep() must return a tuple of SweepRun")
    if not runs:
        raise UserError(f"{path}: get_sweep() lists no run")
    loaded: dict[SweepRun, ConfigDict] = {}
    names: set[str] = set()
    for run in runs:
        if not _is_well_formed(run):
            raise UserError(
                f"{path}: {reprlib.repr(run)} is not SweepRun(name, config, {{key: value}}): name, "
                "config and keys are texts"
            )
        if run.name in names:
            raise UserError(f"{path}: two runs are named {run.name!r}")
        if not _is_folder_name(run.name):
            raise UserError(f"{path}: {run.name!r} is not a name for a folder")
        if run.name == "logs":
            raise UserError(f"{path}: a run may not be named 'logs'")
        names.add(run.name)
        whole = dataclasses.replace(run, overrides={**run.overrides, **overrides})
        loaded[whole] = whole.load()
    return loaded


def _is_well_formed(run: SweepRun) -> bool:
    keys = run.overrides if isinstance(run.overrides, Mapping) else (None,)
    return all(isinstance(text, str) for text in (run.name, run.config, *keys))


def _is_folder_name(name: str) -> bool:
    return bool(name) and not {"/", "\\", "\0"} & set(name) and not name.startswith(".")


def commands(runs: Iterable[SweepRun], workdir: epath.Path) -> list[str]:
    """One shell command per run, for a scheduler."""
    python = ["python", "-m", "looped_jax.main"]
    return [shlex.join([*python, *run.command(workdir)]) for run in runs]


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a run is, read from its workdir."""

    step: int
    steps: int
    finished: bool
    loss: float | None
    evaluation: dict[str, float]  # The last one's metrics.

    @classmethod
    def of(cls, workdir: epath.Path, steps: int) -> "Progress":
        lines = read_metrics(workdir)
        losses = [line["train/loss"] for line in lines if "train/loss" in line]
        evaluations = [
            {name: value for name, value in line.items() if name.startswith("eval/")}
            for line in lines
        ]
        return cls(
            step=int(lines[-1]["step"]) if lines else 0,
            steps=steps,
            # The last checkpoint is written after everything else.
            finished=steps in saved_steps(workdir),
            loss=losses[-1] if losses else None,
            evaluation=next((e for e in reversed(evaluations) if e), {}),
        )


class SweepTable:
    """The one table that tells how all runs are."""

    def __init__(self, runs: Mapping[SweepRun, ConfigDict], workdir: epath.Path):
        self._runs, self._workdir = runs, workdir
        self._began = time.monotonic()
        self._done_before = self._done(self._all_progress())
        self.state: dict[str, str] = {}  # Of runs: running, failed.

    def progress(self, run: SweepRun) -> Progress:
        return Progress.of(self._workdir / run.name, self._runs[run].train.steps)

    def _all_progress(self) -> dict[SweepRun, Progress]:
        return {run: self.progress(run) for run in self._runs}

    def _done(self, progress: Mapping[SweepRun, Progress]) -> float:
        """Work done: layers passed through, over all steps of all runs."""
        return sum(_work(self._runs[run], p.step) for run, p in progress.items())

    def _eta_seconds(self, progress: Mapping[SweepRun, Progress]) -> float | None:
        """Time until all runs are done, from the work done since the start; None before any and
        after all."""
        done = self._done(progress)
        left = sum(_work(c, c.train.steps) for c in self._runs.values()) - done
        if done <= self._done_before or not left:
            return None
        return left * (time.monotonic() - self._began) / (done - self._done_before)

    def __rich__(self) -> Table:
        progress = self._all_progress()
        seconds = self._eta_seconds(progress)
        eta = "" if seconds is None else f"about {seconds / 60:.0f} min left"
        table = Table(title=f"sweep {self._workdir}", caption=eta, title_justify="left")
        for name in ("run", "plan"):
            table.add_column(name)
        table.add_column("state")
        for name in ("step", "loss", "evaluation"):
            table.add_column(name, justify="right")
        for run, p in progress.items():
            state = self.state.get(run.name) or (
                "finished" if p.finished else "stopped" if p.step else "waiting"
            )
            table.add_row(
                run.name,
                self._runs[run].model.plan,
                state,
                f"{p.step}/{p.steps}",
                "" if p.loss is None else f"{p.loss:.4f}",
                shown_evaluation(p.evaluation),
            )
        return table


def _work(config: ConfigDict, steps: int) -> float:
    return steps * LoopPlan.parse(config.model.plan).effective_depth


def train_all(
    runs: Mapping[SweepRun, ConfigDict],
    workdir: epath.Path,
    console: Console,
    interrupted: Callable[[], bool] = lambda: False,
) -> None:
    """Trains the runs that are not finished, in turn, each in a process of its own.

    A run that fails does not stop the others. RunError at the end names those that failed and why;
    Preempted after ``interrupted`` said so and the run under way has saved itself.
    """
    table = SweepTable(runs, workdir)
    logs = workdir / "logs"
    try:
        logs.mkdir(parents=True, exist_ok=True)
        write_whole(workdir / SWEEP_FILE, _listing(runs))
    except OSError as error:
        raise UserError(f"cannot write in workdir {workdir}: {error.strerror}") from error
    failed: dict[str, str] = {}
    try:
        with Live(
            table, console=console, refresh_per_second=0.5, auto_refresh=console.is_terminal
        ) as live:
            for run in runs:
                if table.progress(run).finished:
                    continue
                table.state[run.name] = "running"
                if not console.is_terminal:
                    console.print(f"{run.name}: started, log in {logs / run.name}.txt")
                failure = _train_one(run, workdir, logs / f"{run.name}.txt", interrupted)
                del table.state[run.name]
                if interrupted():
                    raise Preempted(f"stopped; the same command goes on with {run.name}")
                if failure is None and not table.progress(run).finished:
                    failure = "it ended before its last step"
                if failure is not None:
                    table.state[run.name] = "failed"
                    failed[run.name] = failure
                live.refresh()
    finally:
        if not console.is_terminal:
            console.print()  # The table ends without a newline.
    if failed:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in failed.items())
        raise RunError(f"{len(failed)} of {len(runs)} runs failed ({reasons})")


def _train_one(
    run: SweepRun, workdir: epath.Path, log: epath.Path, interrupted: Callable[[], bool]
) -> str | None:
    """Trains a run; None, or the last thing that it said."""
    with log.open("a") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "looped_jax.main", *run.command(workdir)],
            stdout=file,
            stderr=subprocess.STDOUT,
        )
        told = False
        try:
            while process.poll() is None:
                if interrupted() and not told:
                    process.terminate()  # It finishes its step and saves itself.
                    told = True
                time.sleep(0.2)
        except BaseException:
            process.terminate()
            process.wait()
            raise
    if process.returncode == 0:
        return None
    lines = [line for line in log.read_text().replace("\r", "\n").splitlines() if line.strip()]
    return lines[-1].removeprefix("error: ") if lines else f"exit code {process.returncode}"


def check_unclaimed(runs: Mapping[SweepRun, ConfigDict], workdir: epath.Path) -> None:
    """UserError if a run's folder holds a run of another config."""
    for run, config in runs.items():
        path = workdir / run.name / "config.json"
        if path.exists():
            there = config_lib.read_config(path)
            if differences := config_lib.differences(config, there):
                raise UserError(
                    f"{path.parent} holds a run of another config ({'; '.join(differences)}); "
                    "choose another --workdir"
                )


def _listing(runs: Mapping[SweepRun, ConfigDict]) -> str:
    listed = [
        {"name": run.name, "config": run.config, "overrides": dict(run.overrides)} for run in runs
    ]
    return json.dumps({"runs": listed}, indent=2) + "\n"


def listed_runs(workdir: epath.Path) -> list[str]:
    """Names of a sweep's runs in order, started or not; empty if this is not a sweep's folder.

    UserError for a file that says nothing of runs.
    """
    path = workdir / SWEEP_FILE
    if not path.exists():
        return []
    try:
        names = [run["name"] for run in json.loads(path.read_text())["runs"]]
        if not all(isinstance(name, str) and _is_folder_name(name) for name in names):
            raise ValueError
        return names
    except (ValueError, TypeError, KeyError, OSError, RecursionError) as error:
        raise UserError(
            f"{path} is damaged; the command that trains the sweep writes it again"
        ) from error
