"""Kinds of loops that change what is inside layers, or how many streams there are: where they
begin, and what they can become. That they equal a plain `for` is in test_loop_variants.py."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import batch_logits, init, random_rows, small_model

from looped_jax.models.layers import norm
from looped_jax.models.loops.base import Counts
from looped_jax.models.loops.lanes_hyperloop import KEPT
from looped_jax.models.loops.time import features
from looped_jax.models.transformer import batch_forward

ROWS = random_rows(rows=3)
PLAN = "1x1,2x3"
LORA, TIME = (("per_loop", "lora"),), (("per_loop", "time"),)


def shared(params: Any) -> Any:
    return {name: tree for name, tree in params.items() if name != "per_loop"}


@pytest.mark.exact_bits
def test_lora_begins_as_the_plain_loop() -> None:
    model, plain = small_model(PLAN, loop=LORA, lora_rank=3), small_model(PLAN)
    params = init(model)
    jax.tree.map(np.testing.assert_array_equal, shared(params), init(plain))
    assert list(params["per_loop"]) == ["segment_1"]  # Segment 0 is not looped.
    up = params["per_loop"]["segment_1"]["layers"]["layer"]["mlp"]["up"]
    assert jax.tree.map(jnp.shape, up) == {"lora_a": (3, 2, 16, 3), "lora_b": (3, 2, 3, 32)}
    # No two loops and no two layers begin with the same A.
    assert len(np.unique(np.asarray(up["lora_a"])[..., 0, 0])) == 6
    np.testing.assert_array_equal(
        batch_logits(model, params, ROWS), batch_logits(plain, shared(params), ROWS)
    )


def test_lora_of_full_rank_is_any_untied_stack() -> None:
    untied, model = small_model("6x1"), small_model("2x3", loop=LORA, lora_rank=16)
    layers, params = init(untied)["segment_0"]["layers"]["layer"], init(model)
    tied, own = (of["segment_0"]["layers"]["layer"] for of in (params, params["per_loop"]))
    for block in own:
        for name, thin in own[block].items():
            a_shape, b_shape = thin["lora_a"].shape, thin["lora_b"].shape
            # [L, k, in …, out …]
            kernel = layers[block][name]["kernel"].reshape(3, *tied[block][name]["kernel"].shape)
            left = (kernel - tied[block][name]["kernel"]).reshape(3, 2, -1, math.prod(b_shape[3:]))
            u, s, v = np.linalg.svd(left, full_matrices=False)
            thin["lora_a"] = (u * s[..., None, :]).reshape(a_shape)
            thin["lora_b"] = v.reshape(b_shape)
    stack = shared(params) | {"segment_0": {"layers": {"layer": layers}}}
    expected = batch_logits(untied, stack, ROWS)
    np.testing.assert_allclose(batch_logits(model, params, ROWS), expected, rtol=1e-4, atol=1e-4)


def test_a_model_told_the_time_begins_as_its_embedding() -> None:
    model = small_model("2x3", loop=TIME)
    params = init(model)
    assert "per_loop" not in params  # All of it is shared.
    embedded = params["embed"]["embedding"][ROWS["tokens"]] * 4.0  # The root of D = 16.
    expected = norm(model.config, "n").apply({"params": params["final_norm"]}, embedded)
    output = batch_forward(model, params, ROWS).x_BTD
    np.testing.assert_allclose(output, expected, rtol=1e-5, atol=1e-6)


def test_the_time_is_told_by_sines_and_cosines() -> None:
    found = features(jnp.asarray([0.0, 0.5]))
    assert found.shape == (2, 256)
    np.testing.assert_array_equal(found[0], [1.0] * 128 + [0.0] * 128)
    np.testing.assert_allclose(found[1, [0, 128]], [np.cos(0.5), np.sin(0.5)], rtol=1e-6)


def test_rows_that_wait_have_loop_numbers_of_their_own() -> None:
    counts = Counts(jnp.asarray([2, 7, 4]), jnp.asarray(7), with_gradient=3)
    numbers_LB = np.stack([counts.number_B(jnp.asarray(loop)) for loop in range(7)])
    # The first 4, 4 - 3, … loops of a row, then the last 3 of all rows side by side.
    assert numbers_LB[:, 1].tolist() == [*range(7)]
    assert numbers_LB[4:6, 0].tolist() == [0, 1]
    assert numbers_LB[[0, 4, 5, 6], 2].tolist() == [0, 1, 2, 3]


def test_hyper_connection_lanes_begin_as_published() -> None:
    own = init(small_model("2x3", loop=(("lanes", "hyper"),)))["per_loop"]["segment_0"]["lanes"]
    np.testing.assert_array_equal(own["read"], [[1, 0], [0, 1], [1, 0]])
    np.testing.assert_array_equal(own["mix"], [np.eye(2)] * 3)
    np.testing.assert_array_equal(own["write"], np.ones((3, 2)))


def test_hyperloop_begins_near_the_plain_loop_with_streams_that_can_part() -> None:
    model, plain = small_model("2x3", loop=(("lanes", "hyperloop"),)), small_model("2x3")
    params = init(model)
    jax.tree.map(np.testing.assert_array_equal, shared(params), init(plain))
    found = batch_forward(model, params, ROWS).x_BTD
    expected = batch_forward(plain, shared(params), ROWS).x_BTD
    assert 0 < float(jnp.max(jnp.abs(found - expected))) < 3 * KEPT * float(jnp.max(expected))
    loss = lambda p: jnp.sum(jnp.sin(batch_forward(model, p, ROWS).x_BTD))  # noqa: E731
    own = jax.grad(loss)(params)["per_loop"]["segment_0"]["lanes"]
    for name in ("read", "write", "keep"):
        assert len(np.unique(np.asarray(own[f"{name}_bias"])[1])) == 4, name
