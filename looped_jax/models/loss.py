"""Cross-entropy against a vocabulary whose logits are never all there at once.

The tokens of a device go through the output projection in chunks. The loss comes with its
gradient in one pass: of logits z and target y it is softmax(z) - onehot(y), so each chunk's logits
are used while they are there, and neither kept nor computed again.

Shapes in names: N tokens of a device, n of a chunk; others as in models/layers.py.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from looped_jax.models.config import ModelConfig
from looped_jax.models.layers import Array
from looped_jax.models.output import vocabulary_logits
from looped_jax.parallel.per_device import (
    TOKEN_AXES,
    free_axes,
    gather,
    per_device,
    scatter_sum,
    spec_of,
    split_axes,
)

_TOKENS = ("batch", "length")


def loss_sums(
    config: ModelConfig,
    x_BTD: Array,
    kernel_VD: Array,
    targets_BT: Array,
    weights_BT: Array,
    z_loss: float = 0.0,
) -> tuple[Array, Array]:
    """Sum over tokens of weight x (cross-entropy + z_loss log(Z)^2), and of weight x
    cross-entropy alone, which carries no gradient."""
    return _loss_sums(config, z_loss, x_BTD, kernel_VD, targets_BT, weights_BT)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _loss_sums(config: ModelConfig, z_loss: float, *arrays: Array) -> tuple[Array, Array]:
    return _with_gradients(config, z_loss, *arrays)[0]


def _with_gradients(
    config: ModelConfig,
    z_loss: float,
    x_BTD: Array,
    kernel_VD: Array,
    targets_BT: Array,
    weights_BT: Array,
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    axes = split_axes(TOKEN_AXES)
    tokens, kernel_spec = spec_of(_TOKENS, axes), spec_of(("vocab", "embed"), axes)

    def on_device(x_BTD: Array, kernel_VD: Array, targets_BT: Array, weights_BT: Array) -> Any:
        kernel_whole_VD = gather(kernel_VD.astype(config.dtype), kernel_spec)

        def add(sums: tuple[Array, ...], chunk: tuple[Array, ...]) -> tuple[Any, Array]:
            x_nD, targets_n, weights_n = chunk
            logits_nV, is_target_nV = _logits(config, x_nD, kernel_whole_VD, targets_n)
            log_z_n = jax.nn.logsumexp(logits_nV, axis=-1)
            xent_n = log_z_n - jnp.sum(jnp.where(is_target_nV, logits_nV, 0.0), axis=-1)
            # d/dz of xent is p - onehot, of log(Z)^2 it is 2 log(Z) p.
            of_p_n = weights_n * (1.0 + 2.0 * z_loss * log_z_n)
            p_nV = jnp.exp(logits_nV - log_z_n[:, None])
            d_nV = of_p_n[:, None] * p_nV - jnp.where(is_target_nV, weights_n[:, None], 0.0)
            d_nV = d_nV.astype(config.dtype)
            dx_nD = _matmul(d_nV, kernel_whole_VD, 1, 0).astype(x_nD.dtype)
            xent = jnp.sum(weights_n * xent_n)
            loss = xent + z_loss * jnp.sum(weights_n * log_z_n**2)
            parts = (loss, xent, _matmul(d_nV, x_nD, 0, 0))
            return jax.tree.map(jnp.add, sums, parts), dx_nD

        zeros = (jnp.zeros(()), jnp.zeros(()), jnp.zeros(kernel_whole_VD.shape, jnp.float32))
        flat = _flat(x_BTD, targets_BT, weights_BT)
        (loss, xent, dk_VD), dx_ND = _over_chunks(config, add, zeros, flat)
        if axes:
            loss, xent = jax.lax.psum((loss, xent), tuple(axes))
            dk_VD = scatter_sum(dk_VD, kernel_spec, axes)
        return (loss, xent), (dx_ND.reshape(x_BTD.shape), dk_VD.astype(kernel_VD.dtype))

    one, x_spec = PartitionSpec(), PartitionSpec(*tokens, None)
    return _run(
        on_device,
        axes,
        (x_spec, kernel_spec, tokens, tokens),
        ((one, one), (x_spec, kernel_spec)),
    )(x_BTD, kernel_VD, targets_BT, weights_BT)


def _backward(
    config: ModelConfig, z_loss: float, gradients: tuple[Array, Array], of_sums: tuple[Array, Array]
) -> tuple[Any, ...]:
    dx_BTD, dk_VD = gradients
    of_loss, _ = of_sums
    return (dx_BTD * of_loss.astype(dx_BTD.dtype), dk_VD * of_loss, None, None)


_loss_sums.defvjp(_with_gradients, _backward)


def token_scores(
    config: ModelConfig, x_BTD: Array, kernel_VD: Array, targets_BT: Array
) -> tuple[Array, Array]:
    """Cross-entropy of each token, float32 [B, T], and the most likely id, int32 [B, T]."""
    axes = split_axes(TOKEN_AXES)
    tokens, kernel_spec = spec_of(_TOKENS, axes), spec_of(("vocab", "embed"), axes)

    def on_device(x_BTD: Array, kernel_VD: Array, targets_BT: Array) -> tuple[Array, Array]:
        kernel_whole_VD = gather(kernel_VD.astype(config.dtype), kernel_spec)

        def score(_: Array, chunk: tuple[Array, ...]) -> tuple[Array, tuple[Array, Array]]:
            x_nD, targets_n = chunk
            logits_nV, is_target_nV = _logits(config, x_nD, kernel_whole_VD, targets_n)
            of_target_n = jnp.sum(jnp.where(is_target_nV, logits_nV, 0.0), axis=-1)
            xent_n = jax.nn.logsumexp(logits_nV, axis=-1) - of_target_n
            return _, (xent_n, jnp.argmax(logits_nV, axis=-1).astype(jnp.int32))

        flat = _flat(x_BTD, targets_BT)
        _, scores = _over_chunks(config, score, jnp.zeros(()), flat)
        return jax.tree.map(lambda s_N: s_N.reshape(targets_BT.shape), scores)

    x_spec = PartitionSpec(*tokens, None)
    return _run(on_device, axes, (x_spec, kernel_spec, tokens), (tokens, tokens))(
        x_BTD, kernel_VD, targets_BT
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def token_losses(config: ModelConfig, x_BTD: Array, kernel_VD: Array, targets_BT: Array) -> Array:
    """Cross-entropy of each token, float32 [B, T], whatever is made of it later: for its gradient
    the logits are computed once more, where ``loss_sums`` has it at once but must know what each
    token weighs. Between, nothing is kept but the arguments."""
    return token_scores(config, x_BTD, kernel_VD, targets_BT)[0]


def _token_losses_forward(config: ModelConfig, *arrays: Array) -> tuple[Array, tuple[Array, ...]]:
    return token_losses(config, *arrays), arrays


def _token_losses_backward(
    config: ModelConfig, arrays: tuple[Array, ...], of_xent_BT: Array
) -> tuple[Any, ...]:
    x_BTD, kernel_VD, targets_BT = arrays
    _, gradients = _with_gradients(config, 0.0, x_BTD, kernel_VD, targets_BT, of_xent_BT)
    return (*gradients, None)


token_losses.defvjp(_token_losses_forward, _token_losses_backward)


def _run(function: Callable[..., Any], axes: Any, in_specs: Any, out_specs: Any) -> Any:
    return per_device(function, axes, in_specs, out_specs) if axes else function


def _matmul(a: Array, b: Array, a_axis: int, b_axis: int) -> Array:
    return jax.lax.dot_general(
        a, b, (((a_axis,), (b_axis,)), ((), ())), preferred_element_type=jnp.float32
    )


def _logits(
    config: ModelConfig, x_nD: Array, kernel_VD: Array, targets_n: Array
) -> tuple[Array, Array]:
    """float32 logits_nV, and where each row's target is (a comparison, which unlike a gather needs
    nothing from other devices when V is split)."""
    logits_nV = vocabulary_logits(config, x_nD, kernel_VD)
    ids_nV = jax.lax.broadcasted_iota(jnp.int32, logits_nV.shape, 1)
    return logits_nV, ids_nV == targets_n[:, None]


def _flat(x_BTD: Array, *rest_BT: Array) -> tuple[Array, ...]:
    return (x_BTD.reshape(-1, x_BTD.shape[-1]), *(r_BT.reshape(-1) for r_BT in rest_BT))


def _over_chunks(config: ModelConfig, step: Any, carry: Any, flat_N: tuple[Array, ...]) -> Any:
    """`lax.scan` of step over chunks of tokens whose logits take config.logits_mb at most."""
    count = flat_N[0].shape[0]
    vocab = config.vocab_size // free_axes(("tensor",)).get("tensor", 1)
    chunks = min(count, -(-count * vocab * 4 // int(config.logits_mb * 1e6)))
    if chunks == 1:
        return step(carry, flat_N)
    size = -(-count // chunks)

    def split(array_N: Array) -> Array:
        missing = size * chunks - count  # Tokens of weight 0 fill the last chunk.
        padded = jnp.pad(array_N, ((0, missing),) + ((0, 0),) * (array_N.ndim - 1))
        return padded.reshape(chunks, size, *array_N.shape[1:])

    carry, out = jax.lax.scan(step, carry, jax.tree.map(split, flat_N))
    return carry, jax.tree.map(lambda o: o.reshape(-1, *o.shape[2:])[:count], out)
