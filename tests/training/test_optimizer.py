from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import init, random_rows, small_config, small_model
from hypothesis import given
from hypothesis import strategies as st

from looped_jax.training.optimizer import decays, make_optimizer
from looped_jax.training.schedule import learning_rate
from looped_jax.training.train_step import loss_and_grads, loss_sum


def optimizer_config(**overrides: Any) -> Any:
    return small_config(**{f"optimizer__{k}": v for k, v in overrides.items()}).optimizer


@given(st.integers(1, 50), st.integers(51, 200), st.sampled_from(["cosine", "constant", "rsqrt"]))
def test_the_rate_rises_linearly_to_the_peak_and_never_above(
    warmup: int, steps: int, schedule: str
) -> None:
    config = optimizer_config(warmup_steps=warmup, schedule=schedule, learning_rate=0.5)
    rates = np.array([learning_rate(config, steps)(i) for i in range(steps)])
    np.testing.assert_allclose(rates[:warmup], 0.5 * np.arange(1, warmup + 1) / warmup, rtol=1e-4)
    assert (np.diff(rates[warmup - 1 :]) <= 1e-6).all()


def test_cosine_rsqrt_and_constant_follow_their_formulas() -> None:
    def rate(update: int, **overrides: Any) -> float:
        # `update` counts from 1; the schedule is asked for the updates already made.
        config = optimizer_config(learning_rate=0.2, warmup_steps=10, **overrides)
        return float(learning_rate(config, 110)(update - 1))

    assert rate(60, schedule="cosine") == pytest.approx(0.1)  # Half of the way down.
    assert rate(110, schedule="cosine", final_fraction=0.1) == pytest.approx(0.02)
    assert rate(40, schedule="rsqrt") == pytest.approx(0.2 * (10 / 40) ** 0.5)
    assert rate(100, schedule="constant") == pytest.approx(0.2)


def test_weight_decay_spares_norms_biases_and_embeddings() -> None:
    params = init(small_model("1x2", bias=True, norm="layernorm", positions="learned"))
    flat = jax.tree_util.tree_leaves_with_path(decays(params))
    decayed = {jax.tree_util.keystr(p, simple=True, separator="/") for p, on in flat if on}
    layer = "segment_0/layers/layer"
    assert decayed == {
        *(f"{layer}/attention/{name}/kernel" for name in ("query", "key", "value", "output")),
        *(f"{layer}/mlp/{name}/kernel" for name in ("up", "down")),
    }


REFERENCES = {
    "adamw": lambda rate: optax.adamw(
        rate, b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.1, mask=decays
    ),
    "adafactor": lambda rate: optax.adafactor(rate),
    "sgd": lambda rate: optax.sgd(rate),
}


@pytest.mark.parametrize("name", REFERENCES)
def test_updates_equal_the_librarys_own_optimizer(name: str) -> None:
    # Wide enough for Adafactor to factor (128).
    params = {"dense": {"kernel": jnp.linspace(-1, 1, 128 * 130).reshape(128, 130)}}
    config = optimizer_config(
        name=name, weight_decay=0.1 if name == "adamw" else 0.0, clip_norm=0.0, warmup_steps=3
    )
    ours, theirs = make_optimizer(config, 12), REFERENCES[name](learning_rate(config, 12))
    states = [ours.init(params), theirs.init(params)]
    for i in range(3):
        grads = jax.tree.map(lambda x, i=i: jnp.cos(x + i), params)
        (a, states[0]), (b, states[1]) = (
            ours.update(grads, states[0], params),
            theirs.update(grads, states[1], params),
        )
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), a, b)


def test_clipping_bounds_the_global_norm() -> None:
    config = optimizer_config(
        name="sgd", clip_norm=0.5, learning_rate=1.0, warmup_steps=0, schedule="constant"
    )
    grads = {"a": jnp.full(4, 3.0), "b": jnp.full(4, 4.0)}  # Norm 10.
    optimizer = make_optimizer(config, 10)
    updates, _ = optimizer.update(grads, optimizer.init(grads), grads)
    np.testing.assert_allclose(updates["a"], -3.0 * 0.05, rtol=1e-5)
    np.testing.assert_allclose(updates["b"], -4.0 * 0.05, rtol=1e-5)


def test_accumulated_gradients_equal_those_of_the_whole_batch() -> None:
    model = small_model("1x2")
    params, rows = init(model), random_rows(rows=8)
    rows["loss_weights"][:5] = 0  # Parts of unequal weight.
    rows["loss_weights"][0, 0] = 1
    compute = jax.jit(
        lambda p, parts: loss_and_grads(model, p, rows, 1e-3, parts), static_argnums=1
    )
    loss, grads = compute(params, 1)
    for parts in (2, 4):
        loss_n, grads_n = compute(params, parts)
        np.testing.assert_allclose(loss, loss_n, rtol=1e-6)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7), grads, grads_n
        )


def test_the_loss_is_the_mean_cross_entropy_of_weighted_tokens_plus_z_loss() -> None:
    model = small_model("1x1")
    params, rows = init(model), random_rows(rows=2)
    logits = np.asarray(
        model.apply({"params": params}, rows["tokens"], rows["segment_ids"], rows["positions"]),
        dtype=np.float64,
    )
    log_z = np.log(np.exp(logits).sum(-1))
    chosen = np.take_along_axis(logits, rows["targets"][..., None], axis=-1)[..., 0]
    weights = rows["loss_weights"]
    expected = (weights * (log_z - chosen)).sum()
    whole, xent = loss_sum(model, params, rows, 0.01)
    assert float(xent) == pytest.approx(expected, rel=1e-5)
    assert float(whole) == pytest.approx(expected + 0.01 * (weights * log_z**2).sum(), rel=1e-5)
    mean, _ = loss_and_grads(model, params, rows)
    assert float(mean) == pytest.approx(expected / weights.sum(), rel=1e-5)
