from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import batch_logits, init, random_rows, small_config, small_model
from hypothesis import given
from hypothesis import strategies as st

from looped_jax.models.config import ModelConfig
from looped_jax.models.loop_plan import LoopPlan
from looped_jax.models.matrices import layered_shape
from looped_jax.models.transformer import LoopedTransformer
from looped_jax.training.optimizer import decays, make_optimizer
from looped_jax.training.schedule import learning_rate
from looped_jax.training.state import TrainState, parameter_axes
from looped_jax.training.train_step import loss_and_grads, loss_sum, make_train_step


def optimizer_config(**overrides: Any) -> Any:
    return small_config(**{f"optimizer__{k}": v for k, v in overrides.items()}).optimizer


@given(
    st.integers(1, 50),
    st.integers(51, 200),
    st.sampled_from(["cosine", "constant", "rsqrt", "wsd"]),
)
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

    # Update 10 has the peak; update 111, the one after the last, would have the end.
    assert rate(10, schedule="cosine") == pytest.approx(0.2)
    half = 0.1 * (1 + np.cos(np.pi * 50 / 101))
    assert rate(60, schedule="cosine") == pytest.approx(half)
    assert rate(111, schedule="cosine", final_fraction=0.1) == pytest.approx(0.02)
    assert rate(40, schedule="rsqrt") == pytest.approx(0.2 * (10 / 40) ** 0.5)
    assert rate(100, schedule="constant") == pytest.approx(0.2)


@given(
    st.integers(0, 30),
    st.integers(1, 100),
    st.floats(0, 1),
    st.floats(0, 1),
    st.sampled_from(["linear", "sqrt"]),
)
def test_wsd_is_stable_and_then_decays_to_its_end(
    warmup: int, steps: int, fraction: float, end: float, form: str
) -> None:
    config = optimizer_config(
        schedule="wsd",
        learning_rate=0.5,
        warmup_steps=warmup,
        decay_fraction=fraction,
        decay_form=form,
        final_fraction=end,
    )
    schedule = learning_rate(config, steps)
    # After the warm-up: update s, from 1, is asked for as s - 1; the last one is the one after all.
    begin = max(1, warmup)
    decaying = min(round(fraction * steps), max(0, steps - begin))
    last_stable = max(begin, steps - decaying)
    for update in range(begin, max(begin, steps) + 1):
        x = max(0.0, (update - last_stable) / (decaying + 1))
        shape = x if form == "linear" else x**0.5
        assert float(schedule(update - 1)) == pytest.approx(0.5 * (1 - (1 - end) * shape), abs=1e-6)
    if steps >= begin:
        assert float(schedule(steps)) == pytest.approx(0.5 * end, abs=1e-6)


def test_weight_decay_spares_norms_biases_and_embeddings() -> None:
    params = init(small_model("1x2", bias=True, norm="layernorm", positions="learned"))
    flat = jax.tree_util.tree_leaves_with_path(decays(params))
    decayed = {jax.tree_util.keystr(p, simple=True, separator="/") for p, on in flat if on}
    layer = "segment_0/layers/layer"
    assert decayed == {
        *(f"{layer}/attention/{name}/kernel" for name in ("query", "key", "value", "output")),
        *(f"{layer}/mlp/{name}/kernel" for name in ("up", "down")),
    }


@pytest.mark.parametrize("warmup", [0, 1, 10])
def test_the_cosine_uses_every_update_with_and_without_warm_up(warmup: int) -> None:
    config = optimizer_config(schedule="cosine", learning_rate=1.0, warmup_steps=warmup)
    rates = np.array([learning_rate(config, 20)(i) for i in range(21)])
    assert rates[max(0, warmup - 1)] == pytest.approx(1.0)
    assert rates[19] > 1e-3
    assert rates[20] == pytest.approx(0.0, abs=1e-7)


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
    axes = {"dense": {"kernel": ("embed", "mlp")}}
    ours, theirs = make_optimizer(config, 12, axes), REFERENCES[name](learning_rate(config, 12))
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
    optimizer = make_optimizer(config, 10, {"a": ("embed",), "b": ("embed",)})
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
    metrics, grads = compute(params, 1)
    for parts in (2, 4):
        metrics_n, grads_n = compute(params, parts)
        np.testing.assert_allclose(metrics["loss"], metrics_n["loss"], rtol=1e-6)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7), grads, grads_n
        )


def test_the_loss_is_the_mean_cross_entropy_of_weighted_tokens_plus_z_loss() -> None:
    model = small_model("1x1")
    params, rows = init(model), random_rows(rows=2)
    logits = np.asarray(
        batch_logits(model, params, rows),
        dtype=np.float64,
    )
    log_z = np.log(np.exp(logits).sum(-1))
    chosen = np.take_along_axis(logits, rows["targets"][..., None], axis=-1)[..., 0]
    weights = rows["loss_weights"]
    expected = (weights * (log_z - chosen)).sum()
    whole, sums = loss_sum(model, params, rows, 0.01)
    assert float(sums["loss"]) == pytest.approx(expected, rel=1e-5)
    assert float(whole) == pytest.approx(expected + 0.01 * (weights * log_z**2).sum(), rel=1e-5)
    means, _ = loss_and_grads(model, params, rows)
    assert float(means["loss"]) == pytest.approx(expected / weights.sum(), rel=1e-5)


def regrouped(params: Any, layers: int) -> Any:
    """The parameters of a `4x1` as those of segments of ``layers`` each."""
    whole = params["segment_0"]["layers"]["layer"]
    parts = {
        f"segment_{i}": {
            "layers": {"layer": jax.tree.map(lambda x, i=i: x[i * layers :][:layers], whole)}
        }
        for i in range(4 // layers)
    }
    return {**{k: v for k, v in params.items() if k != "segment_0"}, **parts}


@pytest.mark.parametrize("name", ["adafactor", "adamw", "muon"])
def test_training_does_not_depend_on_how_layers_are_stored(name: str) -> None:
    # Wide enough that Adafactor factors, so that a statistic over layers or heads would show.
    width = dict(d_model=128, num_heads=4, num_kv_heads=2, d_ff=128, bias=True)
    rows = random_rows(rows=4)
    config = optimizer_config(name=name, warmup_steps=2, learning_rate=0.01)
    start = init(small_model("4x1", **width))
    losses = {}
    for plan, layers in (("4x1", 4), ("2x1,2x1", 2), ("1x1,1x1,1x1,1x1", 1)):
        model = small_model(plan, **width)
        optimizer = make_optimizer(config, 8, parameter_axes(model))
        params = regrouped(start, layers)
        state = TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))
        step = jax.jit(make_train_step(model, optimizer))
        losses[plan] = []
        for _ in range(8):
            state, metrics = step(state, rows)
            losses[plan].append(float(metrics["loss"]))
    first = losses.pop("4x1")
    assert first[-1] < first[0] - 0.5
    for found in losses.values():
        np.testing.assert_allclose(found, first, rtol=2e-6)


def test_adafactor_keeps_almost_nothing_at_the_papers_size() -> None:
    model = LoopedTransformer(
        ModelConfig(
            LoopPlan.parse("24x1"),
            32_768,
            1280,
            d_model=2048,
            num_heads=32,
            num_kv_heads=32,
            d_ff=5120,
        )
    )
    optimizer = make_optimizer(optimizer_config(name="adafactor"), 10, parameter_axes(model))
    params = jax.eval_shape(lambda: init(model))
    kept = jax.eval_shape(optimizer.init, params)
    assert sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(kept)) < 0.02e9


@given(st.sampled_from([("layers",), ()]), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4))
def test_a_parameter_is_seen_as_matrices_of_layers(stacked: Any, d: int, h: int, k: int) -> None:
    lead = (3,) * len(stacked)
    layers = 3 if stacked else 1
    seen = lambda names, shape: layered_shape((*stacked, *names), (*lead, *shape))  # noqa: E731
    assert seen(("embed", "heads", "head_dim"), (d, h, k)) == (layers, d, h * k)
    assert seen(("kv_heads", "head_dim", "embed"), (h, k, d)) == (layers, h * k, d)
    assert seen(("heads", "head_dim"), (h, k)) == (layers, h * k)
    assert seen(("embed",), (d,)) == (layers, d)
