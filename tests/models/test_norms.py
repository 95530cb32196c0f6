"""Where norms stand in a layer, and what they do to queries and keys."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import random_rows, small_config, small_model

from looped_jax.config import validate
from looped_jax.errors import UserError
from looped_jax.models.layers import MLP, Attention, Layer, LayerInputs, norm, rope_angles
from looped_jax.training.job import make_job
from looped_jax.training.state import parameter_axes

ROWS = random_rows(rows=2)


def of_layer(**fields: Any) -> tuple[Any, Any, Any, Any]:
    """A layer's config, parameters (none is a one or a zero), input and LayerInputs."""
    config = small_model("1x1", **fields).config
    inputs = LayerInputs(rope_angles(config, ROWS["positions"]), ROWS["segment_ids"])
    rng = np.random.default_rng(0)
    x_BTD = jnp.asarray(rng.normal(size=(2, 12, 16)), jnp.float32)
    params = Layer(config).init(jax.random.key(0), x_BTD, inputs)["params"]
    leaves, tree = jax.tree.flatten(jax.tree.map(lambda box: box.value, params, is_leaf=is_box))
    params = tree.unflatten([leaf + 0.3 * rng.normal(size=leaf.shape) for leaf in leaves])
    return config, params, x_BTD, inputs


def is_box(node: Any) -> bool:
    return hasattr(node, "value")


@pytest.mark.parametrize("norms", ["pre", "branch", "stream"])
@pytest.mark.parametrize("kind", ["rmsnorm", "rmsnorm_unscaled", "layernorm"])
def test_norms_stand_where_config_loop_norms_says(norms: str, kind: str) -> None:
    config, params, x, inputs = of_layer(norms=norms, norm=kind)

    def normed(name: str, x: Any) -> Any:
        return norm(config, name).apply({"params": params.get(name, {})}, x)

    attended, _ = Attention(config).apply(
        {"params": params["attention"]}, normed("attention_norm", x), inputs
    )
    through = lambda x: MLP(config).apply(  # noqa: E731
        {"params": params["mlp"]}, normed("mlp_norm", x)
    )
    if norms == "pre":
        x = x + attended
        expected = x + through(x)
    elif norms == "branch":
        x = x + normed("attention_out_norm", attended)
        expected = x + normed("mlp_out_norm", through(x))
    else:
        x = normed("attention_out_norm", x + attended)
        expected = normed("mlp_out_norm", x + through(x))
    found, _ = Layer(config).apply({"params": params}, of_layer(norms=norms, norm=kind)[2], inputs)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_an_unscaled_norm_is_one_of_scale_one() -> None:
    config, params, x, inputs = of_layer(norm="rmsnorm_unscaled")
    assert set(params) == {"attention", "mlp"}
    scaled = of_layer()[0]
    ones = {name: {"scale": jnp.ones(16)} for name in ("attention_norm", "mlp_norm")}
    np.testing.assert_array_equal(
        Layer(config).apply({"params": params}, x, inputs)[0],
        Layer(scaled).apply({"params": params | ones}, x, inputs)[0],
    )


def test_the_attention_gate_scales_what_heads_give_channel_by_channel() -> None:
    config, params, x, inputs = of_layer(attention_gate=True, num_kv_heads=2)
    attention = params["attention"]
    plain = of_layer(num_kv_heads=2)[0]
    # With an output that passes channels on, what heads give and what is let through.
    eye = {"output": {"kernel": jnp.eye(16).reshape(4, 4, 16)}}
    ungated, _ = Attention(plain).apply({"params": attention | eye}, x, inputs)
    gated, _ = Attention(config).apply({"params": attention | eye}, x, inputs)
    gate = jax.nn.sigmoid(jnp.einsum("btd,dhk->bthk", x, attention["out_gate"]["kernel"]))
    np.testing.assert_allclose(gated, ungated * gate.reshape(x.shape), rtol=1e-5, atol=1e-5)


def test_with_normed_queries_and_keys_their_kernels_sizes_do_not_matter() -> None:
    config, params, x, inputs = of_layer(qk_norm=True, norm_eps=1e-12)
    found, _ = Layer(config).apply({"params": params}, x, inputs)
    larger = jax.tree.map(lambda leaf: leaf, params)
    for name in ("query", "key"):
        kernel = params["attention"][name]["kernel"]
        larger["attention"] = {**larger["attention"], name: {"kernel": 100 * kernel}}
    np.testing.assert_allclose(
        Layer(config).apply({"params": larger}, x, inputs)[0], found, rtol=1e-4, atol=1e-5
    )
    kernel = params["attention"]["query"]["kernel"]
    evenly = [  # All attend to all evenly.
        Layer(config).apply({"params": {**params, "attention": attention}}, x, inputs)[0]
        for attention in (
            {**params["attention"], "query_norm": {"scale": jnp.zeros(4)}},
            {**params["attention"], "query": {"kernel": 0 * kernel}},
        )
    ]
    np.testing.assert_allclose(*evenly, rtol=1e-5, atol=1e-6)
    assert not np.allclose(evenly[0], found, atol=1e-3)


def test_a_scale_of_heads_is_optimised_layer_by_layer() -> None:
    config = small_config(model__plan="2x2", model__qk_norm=True, optimizer__name="adafactor")
    job = make_job(config)
    names = parameter_axes(job.model)["segment_0"]["layers"]["layer"]["attention"]["query_norm"]
    assert tuple(names["scale"]) == ("layers", "head_dim")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"loop__norms": "branch", "model__norm": "none"}, "config.loop.norms='branch' is about"),
        ({"loop__last_norm": "every_loop", "model__norm": "none"}, "config.loop.last_norm="),
        ({"loop__state": "noise"}, "config.loop.state='noise' forgets a segment's input"),
    ],
    ids=str,
)
def test_options_that_exclude_each_other_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        validate(small_config(**keys))
