"""The fused loss against its definition, whole and in chunks, and its gradients against JAX's."""

import dataclasses
from typing import Any

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import small_model
from hypothesis import given, settings

from looped_jax.models.loss import loss_sums, token_scores

B, T, D, V = 2, 6, 4, 10
CONFIG = small_model(vocab_size=V, d_model=D).config


def arrays(seed: int) -> tuple[Any, ...]:
    rng = np.random.default_rng(seed)
    x_BTD = rng.normal(size=(B, T, D)).astype(np.float32)
    kernel_VD = rng.normal(size=(V, D)).astype(np.float32)
    targets_BT = rng.integers(0, V, size=(B, T)).astype(np.int32)
    weights_BT = rng.choice([0.0, 1.0, 0.5], size=(B, T)).astype(np.float32)
    return x_BTD, kernel_VD, targets_BT, weights_BT


def defined(z_loss: float, x_BTD: Any, kernel_VD: Any, targets_BT: Any, weights_BT: Any) -> Any:
    """The definition, with all logits there."""
    logits_BTV = jnp.einsum("btd,vd->btv", x_BTD, kernel_VD)
    log_z_BT = jax.nn.logsumexp(logits_BTV, axis=-1)
    of_target_BT = jnp.take_along_axis(logits_BTV, targets_BT[..., None], axis=-1)[..., 0]
    xent = jnp.sum(weights_BT * (log_z_BT - of_target_BT))
    return xent + z_loss * jnp.sum(weights_BT * log_z_BT**2), xent


# 5 parts do not divide the 12 tokens.
@pytest.mark.parametrize("chunks", [1, 3, 5, 12])
@pytest.mark.parametrize("z_loss", [0.0, 0.1])
def test_the_loss_and_its_gradients_are_those_of_the_definition(chunks: int, z_loss: float) -> None:
    x, kernel, targets, weights = arrays(0)
    config = dataclasses.replace(CONFIG, logits_mb=B * T * V * 4 / chunks / 1e6)
    # A factor shows that the gradient of what comes after is passed on.
    ours = lambda x, k: 3.0 * loss_sums(config, x, k, targets, weights, z_loss)[0]  # noqa: E731
    theirs = lambda x, k: 3.0 * defined(z_loss, x, k, targets, weights)[0]  # noqa: E731
    found, found_grads = jax.value_and_grad(ours, argnums=(0, 1))(x, kernel)
    expected, expected_grads = jax.value_and_grad(theirs, argnums=(0, 1))(x, kernel)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    for a, b in zip(found_grads, expected_grads, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    _, xent = loss_sums(config, x, kernel, targets, weights, z_loss)
    np.testing.assert_allclose(xent, defined(0.0, x, kernel, targets, weights)[0], rtol=1e-5)


@given(seed=st.integers(0, 1000), shift=st.floats(-50, 50))
@settings(max_examples=20)
def test_scores_of_tokens_are_those_of_the_definition(seed: int, shift: float) -> None:
    x, kernel, targets, _ = arrays(seed)
    x = x * (1 + abs(shift))  # Also where some logits are large.
    xent, likeliest = token_scores(CONFIG, x, kernel, targets)
    logits = np.einsum("btd,vd->btv", x, kernel).astype(np.float64)
    log_p = logits - np.logaddexp.reduce(logits, axis=-1)[..., None]
    expected = -np.take_along_axis(log_p, targets[..., None], -1)[..., 0]
    np.testing.assert_allclose(xent, expected, rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(likeliest, logits.argmax(-1))


def test_no_array_is_as_large_as_all_logits() -> None:
    config = small_model(vocab_size=50_000, d_model=8, logits_mb=2).config
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 64, 8)).astype(np.float32)
    kernel = rng.normal(size=(50_000, 8)).astype(np.float32)
    targets = rng.integers(0, 50_000, size=(2, 64))
    step = jax.jit(jax.grad(lambda x, k: loss_sums(config, x, k, targets, np.ones((2, 64)))[0]))
    memory = step.lower(x, kernel).compile().memory_analysis()
    assert 2 * 64 * 50_000 * 4 == 25_600_000  # Bytes of all logits.
    assert memory.temp_size_in_bytes < 12_000_000
