"""The training run: check everything, restore or start, step, log, evaluate, save.

`prepare` finds whatever is wrong with a config before anything is written; `train` runs it in
a workdir. Order of what happens at a step: update, log, evaluate, checkpoint. A checkpoint is
therefore a point at which everything before it is on disk, and a run resumed from it repeats
exactly what the run that died would have done.
"""

import contextlib
import dataclasses
import math
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any

import jax
import numpy as np
import optax
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict
from tqdm import tqdm

from looped_jax.data.pipeline import (
    announce_epochs,
    check_data,
    data_spec,
    make_source,
    run_vocabulary,
    train_batches,
)
from looped_jax.data.rows import TRAIN_KEYS, Rows
from looped_jax.data.tasks.downstream import TASKS, expand
from looped_jax.errors import Preempted, RunError, UserError
from looped_jax.evaluation.downstream import Asked, Settings, ask, run_task, scalars
from looped_jax.evaluation.held_out import Evaluator, HeldOut
from looped_jax.inference.generator import Generator
from looped_jax.models.config import ModelConfig
from looped_jax.models.flops import train_flops
from looped_jax.models.regularizer import CosineRegularizer
from looped_jax.models.transformer import LoopedTransformer
from looped_jax.parallel import distributed
from looped_jax.parallel.mesh import batch_sharding, local_rows, make_mesh, mesh_context, put_batch
from looped_jax.parallel.peak_flops import peak_flops
from looped_jax.training.checkpoint import Checkpointer, start_from
from looped_jax.training.identity import RunFile, describe
from looped_jax.training.metrics import MetricsWriter
from looped_jax.training.optimizer import make_optimizer
from looped_jax.training.profile import ProfileOnSignal
from looped_jax.training.stacking import Stage, grow, stages
from looped_jax.training.state import (
    StateLayout,
    TrainState,
    init_state,
    parameter_axes,
    state_layout,
)
from looped_jax.training.stopwatch import Stopwatch
from looped_jax.training.train_step import make_train_step
from looped_jax.training.workdir import (
    check_same_held_out,
    claim_workdir,
    locked,
    renew_config,
)


@dataclasses.dataclass(frozen=True)
class Job:
    """A config made concrete on these devices; nothing allocated, nothing written."""

    config: ConfigDict
    model: LoopedTransformer
    optimizer: optax.GradientTransformation
    mesh: Mesh
    layout: StateLayout
    regularizer: CosineRegularizer | None = None
    # The downstream tasks that are evaluated while training, with their prompts.
    downstream: tuple[Asked, ...] = ()

    @property
    def rules(self) -> Any:
        return self.config.mesh.rules

    def context(self) -> contextlib.AbstractContextManager[None]:
        """Where its functions are traced and run."""
        return mesh_context(self.mesh, self.rules, self.model.config.dtype)


def prepare(
    config: ConfigDict, *, needs_data: bool = True, devices: Sequence[Any] | None = None
) -> Job:
    """Builds all that a run needs, on these devices (default: those there are); UserError for
    whatever cannot work."""
    if needs_data:
        check_data(config)
    spec = data_spec(config)
    mesh = make_mesh(config, devices)
    length_shards = mesh.shape["sequence"]
    if spec.length % length_shards:
        raise UserError(
            f"config.mesh.sequence={length_shards} does not divide rows of {spec.length} tokens "
            "(config.data.length)"
        )
    model_config = ModelConfig.from_config(
        config,
        vocab_size=spec.vocab_size,
        max_length=spec.length,
        platform=mesh.devices.flat[0].platform,
        length_shards=length_shards,
    )
    model = LoopedTransformer(model_config)
    regularizer = CosineRegularizer.for_plan(model_config.plan, **config.regularizer)
    stages(config)  # UserError if it cannot be stacked as asked.
    optimizer = make_optimizer(config.optimizer, config.train.steps, parameter_axes(model))
    layout = state_layout(model, optimizer, mesh, config.mesh.rules)
    asked = _downstream_tasks(config, spec.length) if needs_data else ()
    return Job(config, model, optimizer, mesh, layout, regularizer, asked)


def _downstream_tasks(config: ConfigDict, max_length: int) -> tuple[Asked, ...]:
    if config.data.task != "text":
        return ()
    names = expand(tuple(name for name in config.eval.tasks if name != "text"))
    settings = Settings.from_config(config, config.eval.examples)
    vocabulary = run_vocabulary(config)
    return tuple(ask(TASKS[name], settings, vocabulary, max_length) for name in names)


def jitted_train_step(job: Job) -> Any:
    """The compiled-to-be function (state, batch) -> (next state, scalars); takes over the state."""
    train = job.config.train
    return jax.jit(
        make_train_step(
            job.model,
            job.optimizer,
            train.z_loss,
            train.grad_accumulation,
            job.regularizer,
            job.config.seed,
        ),
        donate_argnums=0,
        out_shardings=(job.layout.shardings, None),
    )


def abstract_batch(job: Job) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes, types and shardings of a training batch."""
    shape = (job.config.train.batch_size, job.model.config.max_length)
    return {
        key: jax.ShapeDtypeStruct(
            shape,
            np.float32 if key == "loss_weights" else np.int32,
            sharding=batch_sharding(job.mesh),
        )
        for key in TRAIN_KEYS
    }


def held_out_sets(config: ConfigDict, mesh: Mesh, split: str = "validation") -> list[HeldOut]:
    """The evaluations of a config, this process's rows of them."""
    batch_size = config.eval.batch_size or config.train.batch_size
    return [
        HeldOut.from_source(
            name,
            make_source(config, split, name),
            config.eval.examples,
            batch_size,
            local_rows(mesh, batch_size),
        )
        for name in (config.eval.tasks or (config.data.task,))
        if config.data.task != "text" or name == "text"
    ]


class StopSignal:
    """Remembers a SIGTERM, so that the step under way can be finished and saved.

    Several processes must stop at the same step: there JAX receives the signal, and they agree.
    """

    def __init__(self) -> None:
        self.received = False
        self._several = distributed.several()
        self._previous: Any = None
        if not self._several:
            self._previous = signal.signal(signal.SIGTERM, self._handle)

    def _handle(self, _: int, __: FrameType | None) -> None:
        self.received = True

    def at(self, step: int) -> bool:
        """Whether to stop before this step; to be asked at every step."""
        if self._several and not self.received:
            self.received = distributed.stop_at(step)
        return self.received

    def restore_handler(self) -> None:
        if not self._several:
            signal.signal(signal.SIGTERM, self._previous)


def train(job: Job, workdir: epath.Path) -> None:
    """Trains to config.train.steps, from the workdir's newest checkpoint if it has one.

    UserError for another config's workdir, or one in which another process trains; RunError for a
    non-finite loss or a failed save; Preempted after SIGTERM, when everything is saved.
    """
    with locked(workdir):
        claim_workdir(job.config, workdir)
        _train(job, workdir)


def _train(job: Job, workdir: epath.Path) -> None:
    stop = StopSignal()
    try:
        with Checkpointer(workdir, job.config.checkpoint.keep) as checkpointer:
            latest = checkpointer.latest() or 0
            before: Job | None = None
            for stage in stages(job.config):
                if stage.end < latest:
                    continue
                whole = stage.config == job.config
                of_stage = job if whole else prepare(stage.config)
                run = _Run(of_stage, stage, before, workdir, checkpointer, stop)
                renew_config(job.config, workdir)
                run.go()
                before = of_stage
    finally:
        stop.restore_handler()


class _Run:
    """Trains one stage (config.stacking; without it, all there is)."""

    def __init__(
        self,
        job: Job,
        stage: Stage,
        before: Job | None,
        workdir: epath.Path,
        checkpointer: Checkpointer,
        stop: StopSignal,
    ):
        """``before`` is the stage whose last checkpoint is to be grown; None if there is none."""
        self.job, self.config, self.workdir = job, job.config, workdir
        self.stage, self.before = stage, before
        self.checkpointer, self.stop = checkpointer, stop
        source = make_source(self.config, "train")
        self.batch_size = self.config.train.batch_size
        self.batches = train_batches(source, self.config, local_rows(job.mesh, self.batch_size))
        self.epochs = announce_epochs(source, self.config)
        self.state = self._first_state()
        self.step = int(self.state.step)
        self.held_out = held_out_sets(self.config, job.mesh)
        measured_on = {held_out.name: held_out.sample.identity for held_out in self.held_out}
        check_same_held_out(workdir, measured_on)
        self.metrics = MetricsWriter(workdir, self.step, writes=distributed.is_first())
        start = describe(job.mesh, job.model.config.dtype, source.fingerprint, measured_on)
        # A finished run that is started again does nothing: what made it stays as it is.
        finished = self.step >= stage.end and self.metrics.evaluated(self.step)
        writes = distributed.is_first() and not finished
        self.run_file = RunFile(workdir, start, self.step) if writes else None
        self.evaluate = Evaluator(job.model, job.mesh, job.rules)
        self.generator: Generator | None = None
        self.train_step = jitted_train_step(job)
        length = job.model.config.max_length
        flops = train_flops(job.model.config, self.batch_size, length)
        device = job.mesh.local_devices[0]
        peak = peak_flops(device) * job.mesh.size
        self.watch = Stopwatch(self.batch_size * length, flops, peak, device)
        self.profile = ProfileOnSignal(workdir)

    def _first_state(self) -> TrainState:
        latest = self.checkpointer.latest()
        if latest is not None:
            if self.before is None:
                return self.checkpointer.restore(latest, self.job.layout, self.batches)
            small = self.checkpointer.restore(latest, self.before.layout, self.batches)
            return grow(small, self.before.layout, self.job.layout, self.stage.block)
        if self.config.train.start_from:
            path = epath.Path(self.config.train.start_from)
            job = self.job
            state, taken = start_from(path, job.layout, job.optimizer, self.batches)
            if distributed.is_first():
                print(taken, file=sys.stderr)
            return state
        job = self.job
        return init_state(job.model, job.optimizer, self.config.seed, job.layout)

    def go(self) -> None:
        if self.epochs and distributed.is_first():
            print(self.epochs, file=sys.stderr)
        interactive = sys.stderr.isatty()
        bar = tqdm(
            total=self.config.train.steps,
            initial=self.step,
            desc=f"{self.config.name} {self.config.model.plan}",
            unit="step",
            mininterval=0.5 if interactive else 15.0,
            dynamic_ncols=interactive,
            disable=not distributed.is_first(),
        )
        try:
            with bar, self.job.context():
                self._evaluate_if_due()  # If the run was stopped just before.
                self._loop(bar)
        finally:
            self.profile.close()
            self.metrics.close()
            if self.run_file is not None:
                self.run_file.ended(self.step)

    def _loop(self, bar: tqdm) -> None:
        first = self.step + 1
        before: dict[str, jax.Array] | None = None
        while self.step < self.stage.end:
            if self.stop.at(self.step):
                self._leave()
            self.profile.before(self.step)
            batch = put_batch(self._next_rows(), self.job.mesh, self.batch_size)
            self.state, scalars = self.train_step(self.state, batch)
            # Looked at one step late, so that the device always has the next step at hand.
            if before is not None:
                self._check_finite(self.step, before)
            before = scalars
            self.step += 1
            bar.update()
            if self.step == first:  # It was compiled.
                jax.block_until_ready(scalars)
                self.watch.restart(self.step)
            if self.step % self.config.train.log_every == 0 or self.step == self.stage.end:
                self._check_finite(self.step, scalars)
                self._log(scalars, bar)
            if self._evaluate_if_due() | self._save_if_due(scalars):
                self.watch.restart(self.step)
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

    def _log(self, scalars: dict[str, jax.Array], bar: tqdm) -> None:
        line = {f"train/{name}": float(value) for name, value in scalars.items()}
        line |= self.watch.report()
        shown = {"loss": f"{line['train/loss']:.4f}"}
        if "perf/tokens_per_second" in line:
            shown["tokens/s"] = f"{line['perf/tokens_per_second']:,.0f}"
        self._write(line)
        bar.set_postfix(shown, refresh=False)

    def _evaluate_if_due(self) -> bool:
        due = self.step > 0 and (
            self.step % self.config.eval.every == 0 or self.step == self.stage.end
        )
        # After SIGTERM there is no time for it: the resumed run does it first.
        if not due or self.metrics.evaluated(self.step) or self.stop.received:
            return False
        line: dict[str, float] = {}
        for held_out in self.held_out:
            metrics = self.evaluate(self.state.params, held_out, lambda: self.stop.received)
            if metrics is None:
                return False
            line |= metrics
        for asked in self.job.downstream:
            summary = run_task(
                asked,
                self._generator(),
                run_vocabulary(self.config),
                self.config.eval.style,
                stop=lambda: self.stop.received,
                show_progress=False,
            )
            if summary is None:
                return False
            line |= scalars(asked.task.name, summary)
        self._write(line)
        return True

    def _generator(self) -> Generator:
        """For this step's parameters; compiled at its first use."""
        if self.generator is None:
            job = self.job
            self.generator = Generator(job.model, self.state.params, job.mesh, job.rules)
        self.generator.params = self.state.params
        return self.generator

    def _save_if_due(self, scalars: dict[str, jax.Array]) -> bool:
        if self.step % self.config.checkpoint.every and self.step != self.stage.end:
            return False
        self._check_finite(self.step, scalars)
        self._save()
        return True

    def _save(self) -> None:
        self.metrics.sync()
        self.checkpointer.save(self.step, self.state, self.batches, self.config.to_dict())

    def _leave(self) -> None:
        if self.step and self.checkpointer.latest() != self.step:
            self._save()
            self.checkpointer.wait()
        raise Preempted(
            f"stopped by SIGTERM at step {self.step}, saved in {self.workdir}; the same command "
            "goes on from there"
        )

    def _check_finite(self, step: int, scalars: dict[str, jax.Array]) -> None:
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
        self.watch.ended(step)

    def _write(self, line: dict[str, float]) -> None:
        self.metrics.write(self.step, line)
