"""Muon: which parameters it has, what it does to them, and that they may lie anywhere."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import MESHES, init, random_rows, small_config, small_model

from looped_jax.config import ConfigDict
from looped_jax.parallel.mesh import put_batch
from looped_jax.training.job import jitted_train_step, make_job
from looped_jax.training.muon import RMS, matrix_axes, muon
from looped_jax.training.optimizer import make_optimizer
from looped_jax.training.parameter_groups import map_parameters
from looped_jax.training.state import init_state, parameter_axes


def muon_config(**overrides: Any) -> ConfigDict:
    keys = {"name": "muon", **overrides}
    return small_config(**{f"optimizer__{key}": value for key, value in keys.items()}).optimizer


def by_path(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(p, simple=True, separator="/"): leaf for p, leaf in leaves}


def test_hidden_matrices_are_muons_and_the_rest_is_adamws() -> None:
    model = small_model(
        "1x2", bias=True, norm="layernorm", positions="learned", tied_output=False, qk_norm=True
    )
    axes = parameter_axes(model)
    mine = by_path(map_parameters(lambda *of: matrix_axes(*of) is not None, axes))
    layer = "segment_0/layers/layer"
    assert {path for path, is_mine in mine.items() if is_mine} == {
        *(f"{layer}/attention/{name}/kernel" for name in ("query", "key", "value", "output")),
        *(f"{layer}/mlp/{name}/kernel" for name in ("up", "down")),
    }
    assert {"output/kernel", "embed/embedding", f"{layer}/mlp/up/bias"} <= set(mine)


def test_a_segments_matrix_of_both_inputs_is_muons() -> None:
    job = make_job(small_config(loop__injection="concat", mesh__data=1))
    found = map_parameters(lambda *of: matrix_axes(*of), parameter_axes(job.model))
    of_segment = found["segment_0"]["injection"]["kernel"]
    assert of_segment == optax.contrib.MuonDimensionNumbers((0,), (1,))


def test_what_loops_have_for_themselves_is_adamws_and_the_rest_as_ever() -> None:
    axes = parameter_axes(small_model("2x3", loop=(("lanes", "hyperloop"), ("per_loop", "lora"))))
    mine = by_path(map_parameters(lambda *of: matrix_axes(*of) is not None, axes))
    plain = parameter_axes(small_model("2x3"))
    assert {path for path, is_mine in mine.items() if is_mine} == {
        path
        for path, is_mine in by_path(
            map_parameters(lambda *of: matrix_axes(*of) is not None, plain)
        ).items()
        if is_mine
    }
    assert "per_loop/segment_0/layers/layer/mlp/up/lora_a" in mine


def gradients(params: Any, step: int) -> Any:
    rng = np.random.default_rng(step)
    return jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), jnp.float32), params)


def test_a_layers_matrix_is_updated_as_the_library_updates_it_alone() -> None:
    model = small_model("3x1", d_model=16, num_heads=4, num_kv_heads=2, d_ff=32)
    params, axes = init(model), parameter_axes(model)
    ours = muon(muon_config(), axes)
    of_layer = lambda tree, layer: {  # noqa: E731
        "query": tree["query"]["kernel"][layer].reshape(16, 16),
        "key": tree["key"]["kernel"][layer].reshape(16, 8),
        "output": tree["output"]["kernel"][layer].reshape(16, 16),
    }
    # The library's whole optimizer on one layer's matrices; its rate is taken off the parameters.
    theirs = optax.contrib.muon(-1.0, beta=0.95, consistent_rms=RMS)
    attention = params["segment_0"]["layers"]["layer"]["attention"]
    state = ours.init(params)
    states = [theirs.init(of_layer(attention, layer)) for layer in range(3)]
    for step in range(3):
        grads = gradients(params, step)
        updates, state = ours.update(grads, state, params)
        attended = lambda tree: tree["segment_0"]["layers"]["layer"]["attention"]  # noqa: E731
        for layer in range(3):
            alone = of_layer(attention, layer)
            expected, states[layer] = theirs.update(
                of_layer(attended(grads), layer), states[layer], alone
            )
            found = of_layer(attended(updates), layer)
            for name, value in expected.items():
                np.testing.assert_allclose(found[name], value, rtol=1e-3, atol=1e-5)


def test_an_update_has_adamws_size_whatever_the_shape() -> None:
    model = small_model("2x1", d_model=64, d_ff=256)
    params = init(model)
    optimizer = muon(muon_config(), parameter_axes(model))
    updates, _ = optimizer.update(gradients(params, 0), optimizer.init(params), params)
    for path, update in by_path(updates).items():
        if path.endswith("kernel"):
            for matrix in update:
                # Newton-Schulz leaves singular values between about 0.7 and 1.2.
                assert float(jnp.sqrt(jnp.mean(matrix**2))) == pytest.approx(RMS, rel=0.25)


def test_what_is_adamws_goes_as_with_adamw_at_its_own_rate() -> None:
    model = small_model("1x1", bias=True, tied_output=False)
    params, axes = init(model), parameter_axes(model)
    kept: dict[str, dict[str, Any]] = {}
    for name, rate in (("muon", 0.25), ("adamw", 1.0)):
        config = muon_config(name=name, muon_adamw_rate=rate, weight_decay=0.1, clip_norm=0.0)
        optimizer = make_optimizer(config, 10, axes)
        state = optimizer.init(params)
        for step in range(2):
            updates, state = optimizer.update(gradients(params, step), state, params)
        kept[name] = by_path(updates)
    for path in kept["muon"]:
        is_adamws = not path.endswith("kernel") or path == "output/kernel"
        share = 0.25 if is_adamws else 1.0
        same = np.allclose(kept["muon"][path], share * kept["adamw"][path], rtol=1e-5, atol=1e-9)
        assert same == is_adamws, path


def trained(**overrides: Any) -> tuple[Any, list[float]]:
    config = small_config(
        optimizer__name="muon",
        model__vocab_size=16,
        model__tied_output=False,
        data__length=8,
        **overrides,
    )
    job = make_job(config)
    state, step, losses = init_state(job.model, job.optimizer, 0, job.layout), None, []
    step = jitted_train_step(job)
    with job.context():
        for i in range(3):
            batch = random_rows(rows=16, length=8, vocab=10, seed=i)
            state, metrics = step(state, put_batch(batch, job.mesh))
            losses.append(float(metrics["loss"]))
    return state, losses


@pytest.fixture(scope="module")
def on_one_device() -> tuple[Any, list[float]]:
    return trained(**MESHES["1"])


@pytest.mark.parametrize(
    "name", ["8 data", "2 data, 2 fsdp, 2 tensor", "2 fsdp, 2 tensor, 2 sequence"]
)
def test_every_mesh_trains_alike_and_momentum_lies_as_its_parameter(
    on_one_device: tuple[Any, list[float]], name: str
) -> None:
    state, losses = trained(**MESHES[name])
    np.testing.assert_allclose(losses, on_one_device[1], rtol=1e-4)
    momentum = by_path(state.optimizer)
    found = 0
    for path, param in by_path(state.params).items():
        for at, kept in momentum.items():
            # The output projection's path ends those of the layers' own.
            if at.endswith(f"/{path}") and kept.shape == param.shape:
                found += 1
                assert kept.sharding.is_equivalent_to(param.sharding, param.ndim), at
    assert found >= len(jax.tree.leaves(state.params))
