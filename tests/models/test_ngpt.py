"""Layers on the unit sphere (config.model.layer = ngpt): the whole model equals a plain Python
loop, on every kind of mesh, with every `remat`, when decoding."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    MESHES,
    assert_close,
    batch_logits,
    init,
    random_params,
    random_rows,
    small_config,
    small_model,
    step_on_mesh,
)

from looped_jax.config import validate
from looped_jax.cost.compiled import cost
from looped_jax.errors import UserError
from looped_jax.inference.cache import decode, prefill
from looped_jax.models.flops import train_flops
from looped_jax.models.layers import LayerInputs, rope, rope_angles
from looped_jax.models.transformer import batch_forward, output_kernel, read_out
from looped_jax.training.job import make_job
from looped_jax.training.train_step import loss_and_grads

ROWS = random_rows(rows=3)
PLAN = "1x1,2x2,1x1"
MODEL = dict(layer="ngpt", norm="l2", qk_norm=True, mlp="swiglu", head_size=8, num_kv_heads=2)
LOOP = (("injection", "unit_add"),)
KEYS = {f"model__{key}": value for key, value in MODEL.items()} | {"loop__injection": "unit_add"}


def ngpt(plan: str = PLAN, **fields: Any) -> Any:
    return small_model(plan, **{**MODEL, "loop": LOOP, **fields})


def unit(x: Any, axis: Any = -1) -> Any:
    return x / jnp.sqrt(jnp.sum(x**2, axis=axis, keepdims=True) + 1e-6)


@jax.jit
def layer_by_hand(w: Any, x: Any, inputs: Any, seen: Any) -> Any:
    """Of width 16 (scales are kept as 1/4), 4 heads of 8, 2 of keys."""
    a, m = w["attention"], w["mlp"]
    h = unit(x)
    q, k, v, gate = (
        jnp.einsum("btd,dhk->bthk", h, a[name]["kernel"])
        for name in ("query", "key", "value", "out_gate")
    )
    q, k = rope(unit(q), inputs.rotation), rope(unit(k), inputs.rotation)
    q = q * (4 * a["query_scale"] * 8**0.5) ** 2
    k, v = jnp.repeat(k, 2, axis=2), jnp.repeat(v, 2, axis=2)
    scores = jnp.einsum("bthk,bshk->bhts", q, k) / 8**0.5
    shares = jax.nn.softmax(jnp.where(seen[:, None], scores, -1e30), axis=-1)
    out = jnp.einsum("bhts,bshk->bthk", shares, v)
    out = out * jax.nn.sigmoid(gate * (4 * a["gate_scale"] * 16**0.25) ** 2)
    made = jnp.einsum("bthk,hkd->btd", unit(out, (-2, -1)), a["output"]["kernel"])
    h = h + jnp.abs(0.05 * 4 * w["attention_rate"]) * (unit(made) - h)
    h = unit(h)
    up = h @ m["up"]["kernel"] * m["up_scale"] * 4
    made = jax.nn.silu(h @ m["gate"]["kernel"] * m["gate_scale"] * 4) * up
    made = unit(made) @ m["down"]["kernel"]
    return h + jnp.abs(0.05 * 4 * w["mlp_rate"]) * (unit(made) - h)


def by_hand(model: Any, params: Any, rows: Any, loops: int | None = None) -> Any:
    """Dory: a prelude, a loop that begins each time at length 1 with the prelude's output added, a
    coda."""
    config = model.config
    inputs = LayerInputs(rope_angles(config, rows["positions"]), rows["segment_ids"])
    documents, place = rows["segment_ids"], np.arange(rows["tokens"].shape[1])
    seen = (documents[:, :, None] == documents[:, None]) & (place[:, None] >= place)
    x = params["embed"]["embedding"][rows["tokens"]] * 4
    for index, segment in enumerate(config.plan.with_loops(loops).segments):
        stacked, x0 = params[f"segment_{index}"]["layers"]["layer"], x
        for _ in range(segment.loops):
            if segment.trained_loops > 1:
                x = unit(x) + unit(x0)
            for layer in range(segment.layers):
                x = layer_by_hand(jax.tree.map(lambda w: w[layer], stacked), x, inputs, seen)  # noqa: B023
    return (unit(x) @ params["embed"]["embedding"].T) * (4 * params["logit_scale"])


@functools.cache
def value_and_grad(loops: int | None = None, hand: bool = False, **fields: Any) -> Any:
    model, forward = ngpt(**fields), by_hand if hand else batch_logits
    loss = lambda p: jnp.sum(jnp.sin(forward(model, p, ROWS, loops)))  # noqa: E731
    compute = jax.value_and_grad(loss)
    # A plain `for` takes longer to compile than to run.
    return (compute if hand else jax.jit(compute))(random_params(ngpt()))


@pytest.mark.parametrize("loops", [None, 3])
def test_it_equals_a_plain_for_at_any_loop_count(loops: int | None) -> None:
    assert_close(value_and_grad(loops, unroll="none"), value_and_grad(loops, hand=True))


@pytest.mark.parametrize(
    "how",
    [
        {"unroll": "full"},
        *({"remat": how} for how in ("layer", "loop", "dots")),
        {"remat": "names", "saved_names": ("query", "mlp_gate")},
    ],
    ids=str,
)
def test_execution_does_not_change_it(how: dict[str, Any]) -> None:
    assert_close(value_and_grad(**how), value_and_grad(unroll="none"))


WIDTHS = dict(data__length=8, model__plan="1x2", model__vocab_size=16, model__tied_output=False)


@functools.cache
def one_step(mesh: str) -> Any:
    """Loss and gradients of a batch, on a mesh."""
    config = small_config(**WIDTHS, **KEYS, **MESHES[mesh])
    return step_on_mesh(config, random_rows(rows=16, length=8))


@pytest.mark.parametrize(
    "mesh",
    [
        "2 fsdp, 2 tensor, 2 sequence",
        "2 data, 2 fsdp, 2 tensor, gathered",
    ],
)
def test_loss_and_gradients_are_the_same_on_meshes(mesh: str) -> None:
    assert_close(one_step(mesh), one_step("1"), 2e-5)


@pytest.mark.parametrize("loops", [None, 3])
def test_decoding_equals_the_full_pass(loops: int | None) -> None:
    model = ngpt()
    params = random_params(model)
    tokens = np.random.default_rng(0).integers(3, 16, size=(2, 8)).astype(np.int32)
    rows = {"tokens": tokens, "segment_ids": None, "positions": None}
    full = jax.jit(lambda p: batch_logits(model, p, rows, loops))(params)
    read = jax.jit(lambda p: prefill(model, p, tokens[:, :4], np.full(2, 4), 10, loops))
    step = jax.jit(lambda p, token_B, cache: decode(model, p, token_B, cache, loops))
    logits, cache = read(params)
    for i in range(4, 8):
        np.testing.assert_allclose(logits, full[:, i - 1], rtol=2e-4, atol=2e-5)
        logits, cache = step(params, tokens[:, i], cache)


def test_what_is_read_out_of_a_loop_is_what_a_model_that_ends_there_says() -> None:
    model = ngpt()
    params = random_params(model)
    inputs = LayerInputs(rope_angles(model.config, ROWS["positions"]), ROWS["segment_ids"])
    read = read_out(model, params, inputs, 1)
    output = batch_forward(model, params, ROWS, look=read)
    found = output.segments[1].looked[0] @ output_kernel(model, params).T
    np.testing.assert_allclose(found, batch_logits(model, params, ROWS, 1), rtol=1e-4, atol=1e-5)


def test_scales_begin_as_published() -> None:
    """Then a block moves the stream by a twentieth of the way, and logits are cosines."""
    model = ngpt("1x1", tied_output=False, loop=())
    params = init(model)
    layer = params["segment_0"]["layers"]["layer"]
    for scale in (
        *(layer["attention"][name] for name in ("query_scale", "gate_scale")),
        *(layer[name] for name in ("attention_rate", "mlp_rate")),
        params["logit_scale"],
    ):
        np.testing.assert_array_equal(scale, np.full(scale.shape, 0.25))  # D^-1/2.
    np.testing.assert_array_equal(layer["mlp"]["up_scale"], np.ones((1, 32)))
    np.testing.assert_array_equal(layer["mlp"]["gate_scale"], np.ones((1, 32)))
    np.testing.assert_allclose(output_kernel(model, params), params["output"]["kernel"].T)


def test_flops_are_the_products_of_the_compiled_step() -> None:
    shape = dict(vocab_size=512, d_model=512, d_ff=2048, num_heads=8, num_kv_heads=2)
    model = ngpt("2x3", **shape, head_size=128, max_length=64, unroll="none")
    rows = random_rows(rows=4, length=64, vocab=512)
    step = jax.jit(lambda params, batch: loss_and_grads(model, params, batch))
    compiled = step.lower(init(model), rows).compile()
    found = cost(compiled.as_text()).flops
    assert found == pytest.approx(train_flops(model.config, 4, 64), rel=0.01)


def test_a_norm_to_length_1_has_no_parameters_wherever_there_is_one() -> None:
    model = small_model("2x3", norm="l2", qk_norm=True, loop=(("last_norm", "every_loop"),))
    params = init(model)
    assert set(params) == {"embed", "segment_0"}
    assert set(params["segment_0"]["layers"]["layer"]) == {"attention", "mlp"}
    output = model.apply({"params": params}, ROWS["tokens"])
    np.testing.assert_allclose(jnp.linalg.norm(output.x_BTD, axis=-1), 1.0, rtol=1e-5)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"model__norm": "rmsnorm"}, r"needs config\.model\.norm='l2', not 'rmsnorm'"),
        ({"model__qk_norm": False}, r"needs config\.model\.qk_norm=True, not False"),
        ({"model__mlp": "gelu"}, r"needs config\.model\.mlp='swiglu', not 'gelu'"),
        ({"loop__norms": "branch"}, r"needs config\.loop\.norms='pre', not 'branch'"),
    ],
    ids=str,
)
def test_what_it_is_not_made_of_is_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        validate(small_config(**{**KEYS, **keys}))


@pytest.mark.parametrize("kind", ["time", "lora"])
def test_a_kind_of_loop_that_changes_other_layers_is_refused(kind: str) -> None:
    config = small_config(**KEYS, model__plan="1x2", loop__per_loop=kind)
    with pytest.raises(
        UserError, match=rf"^config\.loop\.per_loop='{kind}' changes what is inside"
    ):
        make_job(config)


def test_heads_may_be_of_another_size_than_the_width_gives() -> None:
    config = small_config(model__head_size=5)
    with pytest.raises(UserError, match="an even head size; head_size is 5"):
        validate(config)
    config = small_config(model__num_heads=3, model__head_size=6)
    validate(config)
    layer = make_job(config).layout.abstract.params["segment_0"]["layers"]["layer"]
    assert layer["attention"]["query"]["kernel"].shape == (1, 16, 3, 6)
    with pytest.raises(UserError, match=r"or say config\.model\.head_size"):
        validate(small_config(model__num_heads=3))
