"""One optimizer step: loss, exact gradient accumulation, update.

The loss is the cross-entropy in float32, averaged over all weighted tokens of the batch,
however it is divided over devices and accumulation parts. What kinds of loops add to it
(training/row_losses.py) is averaged over rows.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from looped_jax.models.loops.segment import Wanted
from looped_jax.models.loss import loss_sums, token_losses
from looped_jax.models.transformer import (
    LoopedTransformer,
    batch_forward,
    layer_inputs,
    output_kernel,
    read_out,
)
from looped_jax.training.average import averaged
from looped_jax.training.loop_counts import LoopCounts
from looped_jax.training.loop_losses import LoopLosses
from looped_jax.training.parameter_groups import held
from looped_jax.training.regularizer import CosineRegularizer
from looped_jax.training.row_losses import adding, with_row_losses
from looped_jax.training.shortcut import short_sums, short_trajectory
from looped_jax.training.state import TrainState

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


def loss_sum(
    model: LoopedTransformer,
    params: Any,
    batch: Batch,
    z_loss: float,
    key: jax.Array | None = None,
    losses: LoopLosses | None = None,
    row_weight: Any = 1.0,
) -> tuple[jax.Array, Metrics]:
    """Sums over weighted tokens: what is minimised, cross-entropy + z_loss * log(Z)^2 unless
    ``losses`` says otherwise, and what is reported, `loss` being the cross-entropy. A row counts as
    ``row_weight`` such tokens, where something is averaged over rows."""
    config, targets_BT, weights_BT = model.config, batch["targets"], batch["loss_weights"]
    asked: dict[str, Any] = {"train": True}
    if adding(config) or (losses is not None and not losses.has_short_trajectory):
        asked["wanted"] = Wanted(emitted=True)
    if losses is not None and losses.looks:
        kernel_VD = output_kernel(model, params)
        rows = (batch["tokens"], batch["segment_ids"], batch["positions"])
        read = read_out(model, params, layer_inputs(config, *rows), losses.segment)
        asked["look"] = lambda x_BTD: token_losses(config, read(x_BTD), kernel_VD, targets_BT)
    output = batch_forward(model, params, batch, key=key, **asked)
    if losses is not None and losses.looks:
        return losses.of_every_loop(output.segments[losses.segment], weights_BT)
    found = loss_sums(config, output.x_BTD, output.kernel_VD, targets_BT, weights_BT, z_loss)
    if losses is None:
        return with_row_losses(config, *found, output.segments, row_weight)
    if losses.has_short_trajectory:
        short = short_sums(model, params, batch, output.x_BTD, key)
        return losses.with_short_trajectory(found[0], *short)
    return losses.of_the_mixture(found[0], output.segments[losses.segment], weights_BT)


def split_batch(batch: Batch, parts: int) -> Batch:
    """[B, …] -> [parts, B / parts, …]: part i takes every parts-th row, so that the rows of a
    device stay on it."""

    def split(x_BT: jax.Array) -> jax.Array:
        x_PBT = x_BT.reshape(-1, parts, *x_BT.shape[1:]).swapaxes(0, 1)
        axes = (None, "batch", "length")
        return nn.with_logical_constraint(x_PBT, axes[: x_PBT.ndim])

    return jax.tree.map(split, batch)


def loss_and_grads(
    model: LoopedTransformer,
    params: Any,
    batch: Batch,
    z_loss: float = 0.0,
    parts: int = 1,
    key: jax.Array | None = None,
    frozen: Any = None,
    losses: LoopLosses | None = None,
) -> tuple[Metrics, Any]:
    """What ``loss_sum`` reports, averaged over tokens, `loss` being the mean cross-entropy, and the
    gradient of what it minimises, in ``parts`` passes over the batch.

    ``key``: for loops that draw; each part has one of its own. ``frozen``: True for parameters
    whose gradient is not computed; it is 0.
    """
    total = jnp.maximum(jnp.sum(batch["loss_weights"]), 1.0)
    row_weight = total / len(batch["tokens"])

    def part_loss(params: Any, part: Batch, number: Any = 0) -> tuple[jax.Array, Metrics]:
        own = None if key is None else jax.random.fold_in(key, number)
        loss, sums = loss_sum(model, held(params, frozen), part, z_loss, own, losses, row_weight)
        return loss / total, {name: value / total for name, value in sums.items()}

    metrics_and_grad = jax.grad(part_loss, has_aux=True)
    if parts == 1:
        grads, metrics = metrics_and_grad(params, batch)
        return metrics, grads

    def add(sums: Any, numbered: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, sums, metrics_and_grad(params, *numbered)), None

    split = split_batch(batch, parts)
    shapes = jax.eval_shape(metrics_and_grad, params, jax.tree.map(lambda x: x[0], split))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    grads, metrics = jax.lax.scan(add, zeros, (split, jnp.arange(parts)))[0]
    return metrics, grads


def make_train_step(
    model: LoopedTransformer,
    optimizer: optax.GradientTransformation,
    z_loss: float = 0.0,
    parts: int = 1,
    regularizer: CosineRegularizer | None = None,
    seed: int = 0,
    counts: LoopCounts | None = None,
    frozen: Any = None,
    losses: LoopLosses | None = None,
    ema: float = 0.0,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The function (state, batch) -> (next state, scalars of this step), to be jitted. What a step
    draws follows from ``seed`` and its number. ``frozen``: as in ``loss_and_grads``; ``ema``: the
    decay of the state's average, if it has one."""

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        drawn: Metrics = {}
        if counts is not None:
            loops_B = counts(key, state.step, len(batch["tokens"]))
            loops_B = nn.with_logical_constraint(loops_B, ("batch",))
            batch, drawn = {**batch, "loops": loops_B}, counts.made(loops_B, parts)
        if losses is not None and losses.has_short_trajectory:
            units_S = short_trajectory(key, losses.loops)
            sizes_BS = jnp.broadcast_to(
                units_S / losses.loops, (len(batch["tokens"]), len(units_S))
            )
            batch = {**batch, "trajectory": nn.with_logical_constraint(sizes_BS, ("batch", None))}
            drawn = {"short/loops": jnp.sum(units_S > 0)}
        reported, grads = loss_and_grads(
            model, state.params, batch, z_loss, parts, key, frozen, losses
        )
        similarity: Metrics = {}
        if regularizer is not None:
            of_penalty, by_group = jax.grad(
                lambda params: regularizer(held(params, frozen)), has_aux=True
            )(state.params)
            grads = jax.tree.map(jnp.add, grads, of_penalty)
            similarity = {f"similarity/{name}": value for name, value in by_group.items()}
            similarity["similarity"] = jnp.mean(jnp.stack(list(by_group.values())))
        updates, optimizer_state = optimizer.update(grads, state.optimizer, state.params)
        metrics = {**reported, "grad_norm": optax.tree.norm(grads), **drawn, **similarity}
        step, params = state.step + 1, optax.apply_updates(state.params, updates)
        average = averaged(state.average, params, step, ema) if ema else None
        next_state = TrainState(step, params, optimizer_state, average)
        return next_state, metrics

    return train_step
