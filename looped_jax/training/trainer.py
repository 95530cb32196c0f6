"""The training run: restore or start, step, and between steps what `_Run.events` lists.

A run resumed from a checkpoint repeats exactly what the run that died would have done: what came
before the checkpoint is on disk, what came after it is done again.
"""

import contextlib
import dataclasses
import math
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import optax
from etils import epath
from tqdm import tqdm

from looped_jax.cost.peak_flops import peak_flops
from looped_jax.data.pipeline import TrainBatches, announce_epochs, train_batches
from looped_jax.data.rows import Rows
from looped_jax.errors import Preempted, RunError, UserError, is_out_of_memory
from looped_jax.parallel import distributed
from looped_jax.parallel.mesh import local_rows, put_batch
from looped_jax.training import screen
from looped_jax.training.checkpoint import Checkpointer, start_from
from looped_jax.training.evaluations import Evaluations
from looped_jax.training.events import Event
from looped_jax.training.identity import RunFile, describe
from looped_jax.training.job import Job, make_job
from looped_jax.training.memory import advice, check_state, compiled_step
from looped_jax.training.metrics_file import MetricsWriter, read_metrics
from looped_jax.training.profile import ProfileOnSignal
from looped_jax.training.schedule import learning_rate
from looped_jax.training.stacking import Stage, grow
from looped_jax.training.state import TrainState, init_state
from looped_jax.training.stop import StopSignal
from looped_jax.training.stopwatch import Stopwatch
from looped_jax.training.trackers import Trackers, check_installed
from looped_jax.training.trackers.base import Start
from looped_jax.training.workdir import (
    check_can_hold,
    check_owner,
    check_same_held_out,
    claim_workdir,
    locked,
)

Scalars = dict[str, jax.Array]


def train(
    job: Job,
    workdir: epath.Path,
    evaluations: Evaluations | None = None,
    claim: Callable[[], None] = lambda: None,
) -> None:
    """Trains to config.train.steps, from the workdir's newest checkpoint if it has one.
    ``evaluations``: those of the job, where they are made already. ``claim`` is called when all
    checks have passed, before anything is written.

    UserError for another config's workdir, one in which another process trains, a missing package
    of config.train.log_to, or too little memory; RunError for a non-finite loss or a failed save;
    Preempted after SIGTERM, when everything is saved.
    """
    check_state(job)
    evaluations = evaluations or Evaluations(job)
    check_installed(job.config)
    check_can_hold(workdir, job.config)

    def claim_all() -> None:
        claim()
        claim_workdir(job.config, workdir)

    with locked(workdir) as still_ours:
        check_owner(job.config, workdir)
        keep = job.config.checkpoint.keep
        with StopSignal(still_ours) as stop, Checkpointer(workdir, keep) as saved:
            latest = saved.latest() or 0
            before: Job | None = None
            peak = peak_flops(job.mesh.local_devices[0])
            if peak is None:
                screen.say(screen.no_mfu(job))
            for stage in job.stages:
                if stage.end < latest:
                    continue
                whole = stage.config == job.config
                of_stage = job if whole else make_job(stage.config)
                measured = evaluations if whole else Evaluations(of_stage)
                with _short_of_memory(of_stage):
                    given = (stage, before, workdir, saved, stop, claim_all, peak)
                    run = _begin(of_stage, measured, *given)
                    run.go()
                before = of_stage
    screen.say(screen.closing(job.config.train.steps, read_metrics(workdir)))


@contextlib.contextmanager
def _short_of_memory(job: Job) -> Iterator[None]:
    """What a device says that has no memory left, as a UserError that says what to lower."""
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) or not is_out_of_memory(error):
            raise
        what = "a device has none left (config.eval.batch_size holds for evaluations)"
        # The others of several processes may have memory, and do not say what this one says.
        kind = RunError if distributed.several() else UserError
        raise kind(advice(job, what)) from error


def _begin(
    job: Job,
    evaluations: Evaluations,
    stage: Stage,
    before: Job | None,
    workdir: epath.Path,
    checkpointer: Checkpointer,
    stop: StopSignal,
    claim: Callable[[], None],
    peak: float | None,
) -> "_Run":
    """Opens all that a stage needs: rows, state, records, these after ``claim``. ``before`` is the
    stage whose last checkpoint is to be grown; None if there is none. ``peak``: of a device, if
    known."""
    config, size = job.config, job.config.train.batch_size
    source = job.data.source("train")
    batches = train_batches(job.data, config, local_rows(job.mesh, size), source)
    ended = (checkpointer.latest() or 0) >= stage.end
    train_step = None if ended else compiled_step(job)
    state, begins = _first_state(job, stage, before, checkpointer, batches)
    step = int(state.step)
    measured_on = {held_out.name: held_out.sample.identity for held_out in evaluations.held_out}
    check_same_held_out(workdir, measured_on)
    claim()
    metrics = MetricsWriter(workdir, step, writes=distributed.is_first())
    # A finished run that is started again does nothing: what made it stays as it is.
    finished = step >= stage.end and metrics.evaluated(step)
    start = describe(job.mesh, job.model.config.dtype, source.fingerprint, measured_on)
    writes = distributed.is_first() and not finished
    screen.say(screen.opening(job, workdir, "was done before" if finished else begins))
    if said := announce_epochs(source, config):
        screen.say(said)
    length = job.model.config.max_length
    device = job.mesh.local_devices[0]
    watched = (size * length, None if peak is None else peak * job.mesh.size, device)
    return _Run(
        job=job,
        stage=stage,
        workdir=workdir,
        train_step=train_step,
        batches=batches,
        state=state,
        step=step,
        other_rows=batches.state()["rows"] - step * size,
        rate=jax.jit(learning_rate(config.optimizer, config.train.steps)),
        evaluations=evaluations,
        checkpointer=checkpointer,
        metrics=metrics,
        trackers=Trackers(Start(workdir, config, step, writes), metrics.kept),
        run_file=RunFile(workdir, start, step) if writes else None,
        watch=Stopwatch(*watched, before=checkpointer.seconds()),
        profile=ProfileOnSignal(workdir),
        stop=stop,
    )


def _first_state(
    job: Job,
    stage: Stage,
    before: Job | None,
    checkpointer: Checkpointer,
    batches: TrainBatches,
) -> tuple[TrainState, str]:
    """Of the newest checkpoint, of train.start_from, or fresh, and which of them, in words;
    ``batches`` goes to its place."""
    latest = checkpointer.latest()
    if latest is not None:
        if before is None:
            state = checkpointer.restore(latest, job.layout, batches)
            return state, f"resumed from step {latest:,}"
        small = checkpointer.restore(latest, before.layout, batches)
        grown = grow(small, before.layout, job.layout, stage.block)
        return grown, f"grown from {before.config.model.plan} at step {latest:,}"
    if job.config.train.start_from:
        path = epath.Path(job.config.train.start_from)
        return start_from(path, job.layout, job.optimizer, batches)
    return init_state(job.model, job.optimizer, job.config.seed, job.layout), "starts anew"


@dataclasses.dataclass
class _Run:
    """One stage of a run under way (config.stacking; without it, all there is)."""

    job: Job
    stage: Stage
    workdir: epath.Path
    train_step: Any  # Compiled; None where no step is left.
    batches: TrainBatches
    state: TrainState
    step: int  # Updates made.
    # Rows that it had read, apart from those that so many updates read now: not 0 where it goes on
    # from a run with another batch size.
    other_rows: int
    rate: optax.Schedule
    evaluations: Evaluations
    checkpointer: Checkpointer
    metrics: MetricsWriter
    trackers: Trackers
    run_file: RunFile | None
    watch: Stopwatch
    profile: ProfileOnSignal
    stop: StopSignal
    scalars: Scalars = dataclasses.field(default_factory=dict)  # Of the last step.

    @property
    def events(self) -> tuple[Event, ...]:
        """What is done between steps, in this order where several are due."""
        config = self.job.config
        return (
            Event(config.train.log_every, self._log),
            # Saved first: what stops an evaluation, which can be made up for, loses no step.
            Event(config.checkpoint.every, self._save),
            Event(config.eval.every, self._evaluate, is_made_up_for=True),
        )

    def go(self) -> None:
        """Trains to the end of the stage."""
        config, interactive = self.job.config, sys.stderr.isatty()
        self.bar = tqdm(
            total=config.train.steps,
            initial=self.step,
            desc=f"{config.name} {config.model.plan}",
            unit="step",
            mininterval=0.5 if interactive else 15.0,
            dynamic_ncols=interactive,
            disable=not distributed.is_first(),
        )
        try:
            with self.bar, self.job.context():
                self._act([event for event in self.events if event.is_made_up_for])
                self._steps()
        finally:
            self.profile.close()
            self.metrics.close()
            self.trackers.close(finished=self.step >= config.train.steps)
            if self.run_file is not None:
                self.run_file.ended(self.step)

    def _act(self, events: list[Event]) -> None:
        due = [event for event in events if event.due(self.step, self.stage.end)]
        if any([event.act() for event in due]):  # A list: none is left out.
            self.watch.restart(self.step)

    def _steps(self) -> None:
        size = self.job.config.train.batch_size
        events, first = list(self.events), self.step + 1
        while self.step < self.stage.end:
            if self.stop.poll():
                self._leave()
            self.profile.before(self.step)
            batch = put_batch(self._next_rows(), self.job.mesh, size)
            before = self.scalars
            self.state, self.scalars = self.train_step(self.state, batch)
            # Looked at one step late, so that the device always has the next step at hand.
            if before:
                self._check_finite(self.step, before)
            self.step += 1
            self.bar.update()
            if self.step == first:  # It was compiled.
                jax.block_until_ready(self.scalars)
                self.watch.restart(self.step)
            self._act(events)
        # After the last step too: an evaluation may have been broken off, and more is to be trained
        # by the same command where there are variants.
        if self.stop.poll():
            self._leave()
        self.checkpointer.wait()

    def _next_rows(self) -> Rows:
        try:
            return next(self.batches)
        except RunError as error:
            self.checkpointer.wait()
            raise RunError(
                f"{error}, at step {self.step + 1}; {self.checkpointer.describe_latest()}; the "
                "same command goes on when the data is there again"
            ) from error

    def _log(self) -> bool:
        self._check_finite(self.step, self.scalars)
        line = {f"train/{name}": float(value) for name, value in self.scalars.items()}
        rows = self.other_rows + self.step * self.job.config.train.batch_size
        line["train/learning_rate"] = float(self.rate(self.step - 1))
        line["train/tokens"] = rows * self.job.model.config.max_length
        of_sources = self.batches.rows_of_sources(rows)
        line |= {f"train/rows/{name}": float(count) for name, count in of_sources.items()}
        line |= self.watch.scalars()
        shown = {"loss": f"{line['train/loss']:.4f}"}
        if "perf/tokens_per_second" in line:
            shown["tokens/s"] = f"{line['perf/tokens_per_second']:,.0f}"
        self._write(line)
        self.bar.set_postfix(shown, refresh=False)
        return False

    def _write(self, line: dict[str, float]) -> None:
        self.metrics.write(self.step, line)
        self.trackers.write(self.step, line)

    def _evaluate(self) -> bool:
        # After SIGTERM there is no time for it: the resumed run does it first.
        if self.metrics.evaluated(self.step) or self.stop.poll():
            return False
        line = self.evaluations.measure(self.state.evaluated, self.stop.poll)
        if line is not None:
            self._write(line)
            if said := screen.evaluation(self.step, line):
                screen.say(said)
        return line is not None

    def _save(self) -> bool:
        self._check_finite(self.step, self.scalars)
        self.metrics.sync()
        self.trackers.flush()
        config = self.job.config.to_dict()
        given = (self.step, self.state, self.batches, config, self.watch.seconds)
        self.checkpointer.save(*given)
        return True

    def _leave(self) -> None:
        if self.step and self.checkpointer.latest() != self.step:
            self._save()
        self.checkpointer.wait()
        raise Preempted(
            f"stopped by SIGTERM at step {self.step}, saved in {self.workdir}; the same command "
            "goes on from there"
        )

    def _check_finite(self, step: int, scalars: Scalars) -> None:
        for name, value in scalars.items():
            if not math.isfinite(float(value)):
                self.checkpointer.wait()
                latest = self.checkpointer.latest()
                how = (
                    ""
                    if latest is None
                    else f" and --config.train.start_from="
                    f"{self.checkpointer.directory / str(latest)}"
                )
                raise RunError(
                    f"{name} is {float(value)} at step {step}; "
                    f"{self.checkpointer.describe_latest()}. To go on: another --workdir with a "
                    f"lower --config.optimizer.learning_rate or --config.optimizer.clip_norm{how}"
                )
        self.watch.ended(step, self._flops(scalars))

    def _flops(self, scalars: Scalars) -> float:
        """Model FLOPs of a step, which says of itself how many loops it made."""
        counts = None
        if self.job.counts is not None:
            counts = self.job.counts.computed(scalars)
        short_loops = float(scalars["short/loops"]) if "short/loops" in scalars else None
        return self.job.step_flops(counts=counts, short_loops=short_loops)
