"""A config made concrete: data, devices, model, optimizer and where everything lies.

Whatever is wrong with a config is found here, before anything is allocated or written.
"""

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from looped_jax.data.rows import TRAIN_KEYS
from looped_jax.data.run_data import RunData, resolve
from looped_jax.errors import UserError
from looped_jax.models.config import ModelConfig
from looped_jax.models.transformer import LoopedTransformer
from looped_jax.parallel.backend import backend_of
from looped_jax.parallel.mesh import batch_sharding, make_mesh, mesh_context
from looped_jax.training.optimizer import make_optimizer
from looped_jax.training.parameter_groups import frozen_parameters
from looped_jax.training.regularizer import CosineRegularizer
from looped_jax.training.stacking import Stage, stages
from looped_jax.training.state import StateLayout, parameter_axes, state_layout
from looped_jax.training.train_step import make_train_step


@dataclasses.dataclass(frozen=True)
class Job:
    """What a config trains, on these devices; nothing allocated, nothing written."""

    config: ConfigDict
    data: RunData
    mesh: Mesh
    model: LoopedTransformer
    regularizer: CosineRegularizer | None
    optimizer: optax.GradientTransformation
    frozen: Any  # True for parameters that are not trained; None if all are.
    layout: StateLayout
    stages: tuple[Stage, ...]  # One, unless config.stacking.

    @property
    def rules(self) -> Any:
        return self.config.mesh.rules

    def context(self) -> contextlib.AbstractContextManager[None]:
        """Where its functions are traced and run."""
        return mesh_context(self.mesh, self.rules, self.model.config.dtype)


def make_job(
    config: ConfigDict, *, needs_data: bool = True, devices: Sequence[Any] | None = None
) -> Job:
    """The job of a config on these devices (default: those there are). UserError for whatever
    cannot work; without ``needs_data`` its files need not be there."""
    data = resolve(config)
    if needs_data:
        data.check()
    mesh = make_mesh(config, devices)
    length_shards = mesh.shape["sequence"]
    if data.length % length_shards:
        raise UserError(
            f"config.mesh.sequence={length_shards} does not divide rows of {data.length} tokens "
            "(config.data.length)"
        )
    model = LoopedTransformer(
        ModelConfig.from_config(
            config,
            vocab_size=data.vocab_size,
            max_length=data.length,
            backend=backend_of(mesh),
            length_shards=length_shards,
        )
    )
    regularizer = CosineRegularizer.for_plan(model.config.plan, **config.regularizer)
    axes = parameter_axes(model)
    optimizer = make_optimizer(config.optimizer, config.train.steps, axes)
    frozen = frozen_parameters(config.optimizer, axes)
    averages = bool(config.optimizer.ema)
    layout = state_layout(model, optimizer, mesh, config.mesh.rules, averages)
    return Job(config, data, mesh, model, regularizer, optimizer, frozen, layout, stages(config))


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
            job.frozen,
            job.config.optimizer.ema,
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
