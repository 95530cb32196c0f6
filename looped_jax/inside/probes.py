"""Linear probes: how well a quantity can be read off a state by a linear map.

Multinomial logistic regression with a little weight decay, fitted to the end by L-BFGS (optax), on
standardised states (Alain & Bengio 2016, arXiv 1610.01644). Accuracy is that on states which the
probe has not seen. Beside it belongs what a probe finds where nothing was learnt (Hewitt & Liang
2019, arXiv 1909.03368): here the states of the same model with fresh parameters, and the share of
the most frequent class. L loops, N examples, D width, Q quantities, C classes.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from looped_jax.inside.quantities import Quantity
from looped_jax.models.layers import Array

STEPS = 60
DECAY = 1e-3


def accuracies(
    trained_on: tuple[np.ndarray, Sequence[Quantity]],
    tested_on: tuple[np.ndarray, Sequence[Quantity]],
) -> np.ndarray:
    """accuracy_QL, 0 to 1, of probes for each quantity on each of states_LND, fitted to the first
    pair and tried on the second."""
    (fit_LND, fit_Q), (try_LND, try_Q) = trained_on, tested_on
    mean_L1D = fit_LND.mean(axis=1, keepdims=True)
    # What does not vary at all stays 0.
    spread_L1D = np.maximum(fit_LND.std(axis=1, keepdims=True), 1e-6)
    fit_LND, try_LND = ((x - mean_L1D) / spread_L1D for x in (fit_LND, try_LND))
    # One program for all; a class that is never seen is never said.
    classes = max(quantity.classes for quantity in fit_Q)
    rows = [
        _accuracies(fit_LND, fit.label_N, try_LND, tried.label_N, classes=classes)
        for fit, tried in zip(fit_Q, try_Q, strict=True)
    ]
    return np.asarray(rows)


def most_frequent(fit: Quantity, tried: Quantity) -> float:
    """The accuracy of one who always says the class that was seen most often."""
    return float(np.mean(tried.label_N == np.bincount(fit.label_N).argmax()))


@functools.partial(jax.jit, static_argnames="classes")
def _accuracies(
    fit_LND: Array, fit_N: Array, try_LND: Array, try_N: Array, *, classes: int
) -> Array:
    """accuracy_L of one quantity."""

    def of_loop(of_loop: tuple[Array, Array]) -> Array:
        fit_ND, try_ND = of_loop
        weights = fitted(fit_ND, fit_N, classes)
        said_N = jnp.argmax(try_ND @ weights["kernel_DC"] + weights["bias_C"], axis=-1)
        return jnp.mean(said_N == try_N)

    return jax.lax.map(of_loop, (fit_LND, try_LND))


def fitted(states_ND: Array, label_N: Array, classes: int) -> dict[str, Array]:
    """kernel_DC and bias_C of the probe."""

    def loss(weights: dict[str, Array]) -> Array:
        logits_NC = states_ND @ weights["kernel_DC"] + weights["bias_C"]
        xent_N = optax.softmax_cross_entropy_with_integer_labels(logits_NC, label_N)
        return jnp.mean(xent_N) + DECAY * jnp.sum(weights["kernel_DC"] ** 2)

    optimizer = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(loss)

    def step(carry: Any, _: None) -> tuple[Any, None]:
        weights, state = carry
        value, gradient = value_and_grad(weights, state=state)
        given: dict[str, Any] = {"value": value, "grad": gradient, "value_fn": loss}
        updates, state = optimizer.update(gradient, state, weights, **given)
        return (optax.apply_updates(weights, updates), state), None

    none = {
        "kernel_DC": jnp.zeros((states_ND.shape[-1], classes)),
        "bias_C": jnp.zeros(classes),
    }
    (weights, _), _ = jax.lax.scan(step, (none, optimizer.init(none)), length=STEPS)
    found: dict[str, Array] = weights
    return found
