"""A config made concrete: data, devices, model, optimizer and where everything lies.

Whatever is wrong with a config is found here, before anything is allocated or written.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from looped_jax.config.combinations import check_combinations
from looped_jax.data.rows import TRAIN_KEYS
from looped_jax.data.run_data import RunData, resolve
from looped_jax.errors import UserError
from looped_jax.models.config import ModelConfig
from looped_jax.models.flops import train_flops
from looped_jax.models.loops.base import PER_LOOP
from looped_jax.models.transformer import LoopedTransformer
from looped_jax.parallel.backend import backend_of
from looped_jax.parallel.mesh import batch_sharding, make_mesh, mesh_context
from looped_jax.training.loop_counts import LoopCounts, mean_counts
from looped_jax.training.loop_losses import LoopLosses
from looped_jax.training.optimizer import make_optimizer
from looped_jax.training.parameter_groups import backward_passes, frozen_parameters
from looped_jax.training.regularizer import CosineRegularizer
from looped_jax.training.stacking import Stage, stages
from looped_jax.training.state import (
    StateLayout,
    parameter_axes,
    parameter_shapes,
    state_layout,
)
from looped_jax.training.train_step import make_train_step


@dataclasses.dataclass(frozen=True)
class Job:
    """What a config trains, on these devices; nothing allocated, nothing written."""

    config: ConfigDict
    data: RunData
    mesh: Mesh
    model: LoopedTransformer
    counts: LoopCounts | None
    losses: LoopLosses | None  # None: the last loop's.
    regularizer: CosineRegularizer | None
    optimizer: optax.GradientTransformation
    frozen: Any  # True for parameters that are not trained; None if all are.
    layout: StateLayout
    stages: tuple[Stage, ...]  # One, unless config.stacking.

    @property
    def rules(self) -> Any:
        return self.config.mesh.rules

    @functools.cached_property
    def step_flops(self) -> Callable[..., float]:
        """Model FLOPs of a training step by what differs from one to the next: train_flops of
        ``counts``, for a job that has them (LoopCounts.computed), and of ``short_loops``, for one
        with a short trajectory."""
        return _step_flops(self.config, self.model, self.losses)

    @functools.cached_property
    def mean_step_flops(self) -> float:
        """The same on average over its steps."""
        return _mean(self.config, self.losses, self.step_flops)

    def context(self) -> contextlib.AbstractContextManager[None]:
        """Where its functions are traced and run."""
        return mesh_context(self.mesh, self.rules, self.model.config.dtype)


def _step_flops(
    config: ConfigDict, model: LoopedTransformer, losses: LoopLosses | None
) -> Callable[..., float]:
    backward, axes = None, parameter_axes(model)
    frozen = frozen_parameters(config.optimizer, axes, _trained_alone(losses))
    if frozen is not None:
        backward = backward_passes(frozen, axes, parameter_shapes(model), model.config)
    read_outs = 1 if losses is None else losses.read_outs
    shape = (config.train.batch_size, model.config.max_length)
    return functools.partial(
        train_flops, model.config, *shape, read_outs=read_outs, backward=backward
    )


def _trained_alone(losses: LoopLosses | None) -> str:
    """The pattern of all that a loss trains, if it is not for every parameter."""
    return "" if losses is None else losses.trains_only


def _mean(config: ConfigDict, losses: LoopLosses | None, step_flops: Callable[..., float]) -> float:
    short_loops = None if losses is None else losses.mean_short_loops
    return step_flops(counts=mean_counts(config), short_loops=short_loops)


def planned_step_flops(config: ConfigDict) -> float:
    """Model FLOPs of a config's mean training step, without devices or its data."""
    data = resolve(config)
    model = LoopedTransformer(
        ModelConfig.from_config(config, vocab_size=data.vocab_size, max_length=data.length)
    )
    losses = LoopLosses.from_config(config)
    return _mean(config, losses, _step_flops(config, model, losses))


def make_job(
    config: ConfigDict, *, needs_data: bool = True, devices: Sequence[Any] | None = None
) -> Job:
    """The job of a config on these devices (default: those there are). UserError for whatever
    cannot work; without ``needs_data`` its files need not be there."""
    check_combinations(config)
    data = resolve(config)
    if needs_data:
        data.check()
        if config.loop_loss.kind == "gate" and not config.train.start_from:
            raise UserError(
                "config.loop_loss.kind='gate' trains the gate of a model that has been trained: "
                "config.train.start_from=RUN/checkpoints/STEP says which"
            )
    mesh = make_mesh(config, devices)
    length_shards = mesh.shape["sequence"]
    if data.length % length_shards:
        raise UserError(
            f"config.mesh.sequence={length_shards} does not divide rows of {data.length} tokens "
            "(config.data.length)"
        )
    counts, losses = LoopCounts.from_config(config), LoopLosses.from_config(config)
    model = LoopedTransformer(
        ModelConfig.from_config(
            config,
            vocab_size=data.vocab_size,
            max_length=data.length,
            backend=backend_of(mesh),
            length_shards=length_shards,
            packed=data.packed,
            gradient_loops=0 if counts is None else counts.with_gradient_at_most,
        )
    )
    regularizer = CosineRegularizer.for_plan(model.config.plan, **config.regularizer)
    axes = parameter_axes(model)
    only = _trained_alone(losses)
    optimizer = make_optimizer(config.optimizer, config.train.steps, axes, only)
    frozen = frozen_parameters(config.optimizer, axes, only)
    averages = bool(config.optimizer.ema)
    layout = state_layout(model, optimizer, mesh, config.mesh.rules, averages)
    if counts is not None:
        counts.check(model.config, PER_LOOP in layout.abstract.params)
    if losses is not None:
        losses.check(model.config)
    return Job(
        config=config,
        data=data,
        mesh=mesh,
        model=model,
        counts=counts,
        losses=losses,
        regularizer=regularizer,
        optimizer=optimizer,
        frozen=frozen,
        layout=layout,
        stages=stages(config),
    )


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
            counts=job.counts,
            frozen=job.frozen,
            losses=job.losses,
            ema=job.config.optimizer.ema,
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
