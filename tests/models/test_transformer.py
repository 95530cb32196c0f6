import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import batch_logits, init, layer_by_hand, random_rows, small_model, token_logits

from looped_jax.models.layers import Layer, LayerInputs, norm, rope_angles

ROWS = random_rows(rows=3)


logits = jax.jit(batch_logits, static_argnums=0, static_argnames="loops")


def assert_trees_close(there: Any, here: Any, tolerance: float) -> None:
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), there, here
    )


def by_hand(model: Any, params: Any, rows: dict[str, Any]) -> jax.Array:
    """The same network in plain Python: a `for` over segments, loops and layers."""
    config = model.config
    table = params["embed"]["embedding"]
    x = table[rows["tokens"]]
    if config.positions == "learned":
        x = x + params["position_embedding"][rows["positions"]]
    x = x * config.d_model**0.5
    inputs = LayerInputs(rope_angles(config, rows["positions"]), rows["segment_ids"])
    for index, segment in enumerate(config.plan.segments):
        stacked = params[f"segment_{index}"]["layers"]["layer"]
        for _ in range(segment.loops):
            for layer in range(segment.layers):
                weights = jax.tree.map(lambda leaf, layer=layer: leaf[layer], stacked)
                x = layer_by_hand(config, weights, x, inputs)
    if config.norm != "none":
        final = norm(config, "final_norm")
        x = final.apply({"params": params["final_norm"]}, x)
    return x @ (table.T if config.tied_output else params["output"]["kernel"])


VARIANTS = [
    dict(plan="2x3"),
    dict(plan="1x1,2x2,1x1", mlp="swiglu", norm="layernorm", bias=True, tied_output=False),
    dict(plan="1x4", mlp="relu", norm="none", positions="learned", num_kv_heads=2),
]


@pytest.mark.parametrize("fields", VARIANTS, ids=lambda f: f["plan"])
def test_k_layers_looped_equal_the_block_unrolled_in_python(fields: dict[str, Any]) -> None:
    model = small_model(**fields)
    params = init(model)

    def loss(forward: Any, params: Any) -> jax.Array:
        return jnp.sum(jnp.sin(forward(model, params, ROWS)))

    looped, looped_grad = jax.jit(jax.value_and_grad(lambda p: loss(batch_logits, p)))(params)
    hand, hand_grad = jax.value_and_grad(lambda p: loss(by_hand, p))(params)
    np.testing.assert_allclose(looped, hand, rtol=1e-5)
    assert_trees_close(looped_grad, hand_grad, 2e-4)


def test_looping_adds_no_parameters() -> None:
    shapes = [jax.tree.map(jnp.shape, init(small_model(plan))) for plan in ("2x1", "2x5")]
    assert shapes[0] == shapes[1]


@pytest.mark.exact_bits
def test_loops_at_evaluation_equal_the_model_built_with_that_many() -> None:
    params = init(small_model("1x1,2x2"))
    overridden = logits(small_model("1x1,2x2"), params, ROWS, loops=3)
    np.testing.assert_array_equal(overridden, logits(small_model("1x1,2x3"), params, ROWS))
    assert not np.allclose(overridden, logits(small_model("1x1,2x2"), params, ROWS))


@functools.cache
def value_and_grad(unroll: str, remat: str, **fields: Any) -> Any:
    model = small_model("2x2", unroll=unroll, remat=remat, **fields)
    params = init(small_model("2x2"))
    loss = lambda p: jnp.sum(jnp.sin(batch_logits(model, p, ROWS)))  # noqa: E731
    return jax.jit(jax.value_and_grad(loss))(params)


@pytest.mark.parametrize("unroll", ["layers", "full"])
def test_unrolling_the_scans_changes_nothing(unroll: str) -> None:
    assert_trees_close(value_and_grad(unroll, "none"), value_and_grad("none", "none"), 1e-4)


@pytest.mark.parametrize("remat", ["layer", "loop", "dots"])
@pytest.mark.parametrize("unroll", ["none", "full"])
def test_rematerialisation_changes_nothing(unroll: str, remat: str) -> None:
    assert_trees_close(value_and_grad(unroll, remat), value_and_grad("none", "none"), 1e-4)


KEPT = {
    "nothing": {},
    "on the device": dict(saved_names=("query", "mlp_up")),
    "on the host": dict(saved_names=("query",), offloaded_names=("mlp_up", "attended")),
}


@pytest.mark.parametrize("kept", KEPT)
def test_keeping_named_activations_changes_nothing(kept: str) -> None:
    found = value_and_grad("none", "names", **KEPT[kept])
    assert_trees_close(found, value_and_grad("none", "none"), 1e-4)


def test_what_is_named_is_kept_and_no_more() -> None:
    def kept(**fields: Any) -> int:
        """Bytes that the forward pass hands to the backward pass."""
        model = small_model("2x3", unroll="none", **fields)
        params = init(model)
        _, pullback = jax.vjp(lambda p: batch_logits(model, p, ROWS), params)
        return sum(x.nbytes for x in jax.tree.leaves(pullback) if hasattr(x, "nbytes"))

    nothing = kept(remat="names")
    assert nothing < kept(remat="none")
    tokens = ROWS["tokens"].size
    # 2 layers, 3 loops; a query has D = 16 floats, a hidden unit of the MLP F = 32.
    assert kept(remat="names", saved_names=("query",)) - nothing == 6 * tokens * 16 * 4
    assert kept(remat="names", saved_names=("mlp_up",)) - nothing == 6 * tokens * 32 * 4


def test_a_token_does_not_see_later_ones() -> None:
    model = small_model("1x2")
    params = init(model)
    changed = {**ROWS, "tokens": ROWS["tokens"].copy()}
    changed["tokens"][:, 6] = (ROWS["tokens"][:, 6] + 1) % 16
    before, after = (logits(model, params, rows) for rows in (ROWS, changed))
    np.testing.assert_array_equal(before[:, :6], after[:, :6])
    assert not np.allclose(before[:, 6], after[:, 6])


@pytest.mark.parametrize("positions", ["rope", "learned", "none"])
def test_packed_rows_equal_separate_rows(positions: str) -> None:
    model = small_model("1x2", positions=positions)
    params = init(model)
    packed = logits(model, params, ROWS)
    for row in range(3):
        for segment in (1, 2):
            where = np.flatnonzero(ROWS["segment_ids"][row] == segment)
            alone = token_logits(model, params, ROWS["tokens"][row : row + 1, where])
            np.testing.assert_allclose(packed[row, where], alone[0], rtol=2e-5, atol=2e-5)


def test_grouped_queries_equal_full_attention_with_repeated_keys_and_values() -> None:
    grouped, full = small_model("1x2", num_kv_heads=2), small_model("1x2", num_kv_heads=4)
    params = init(grouped)
    repeated = jax.tree_util.tree_map_with_path(
        lambda path, leaf: (
            jnp.repeat(leaf, 2, axis=2)
            if {"key", "value"} & {getattr(part, "key", "") for part in path}
            else leaf
        ),
        params,
    )
    np.testing.assert_allclose(
        logits(grouped, params, ROWS),
        logits(full, repeated, ROWS),
        rtol=1e-5,
        atol=1e-5,
    )


def test_bfloat16_computes_in_bfloat16_with_float32_parameters_and_logits() -> None:
    half, single = small_model("1x2", dtype=jnp.bfloat16), small_model("1x2")
    params = init(half)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    rounded = logits(half, params, ROWS)
    assert rounded.dtype == jnp.float32
    exact = logits(single, params, ROWS)
    assert not np.array_equal(rounded, exact)
    # bfloat16 keeps 8 bits: relative errors of 2**-8 over some ten operations.
    np.testing.assert_allclose(rounded, exact, atol=0.04 * float(jnp.abs(exact).max()))


def test_a_pass_traces_a_layer_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, traced, call = small_model("2x3"), [], Layer.__call__

    def counted(self: Layer, *arguments: Any) -> Any:
        traced.append(self.name)
        return call(self, *arguments)

    params = init(model)
    monkeypatch.setattr(Layer, "__call__", counted)
    jax.eval_shape(lambda p: batch_logits(model, p, ROWS), params)
    assert len(traced) == 1


def test_compiled_size_does_not_grow_with_loops_or_layers() -> None:
    def operations(plan: str) -> int:
        model = small_model(plan, unroll="none")
        loss = lambda p: jnp.sum(batch_logits(model, p, ROWS))  # noqa: E731
        compiled = jax.jit(jax.grad(loss)).lower(init(model))
        return compiled.as_text().count("stablehlo.")

    assert operations("2x24") == operations("2x2") == operations("12x2")
