"""The regulariser against its formula in plain numpy, its limits, and what it does to a model."""

import json
import pathlib
from typing import Any

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from helpers import init, small_config, small_model
from hypothesis import given, settings

from looped_jax.errors import UserError
from looped_jax.models.loop_plan import LoopPlan
from looped_jax.training.job import make_job
from looped_jax.training.regularizer import CosineRegularizer, layer_groups, similarity_at
from looped_jax.training.trainer import train


def by_hand(theta: np.ndarray, k: int) -> float:
    """The formula as the paper prints it: blocks i, places j within them."""
    layers = len(theta)
    flat = theta.reshape(layers, -1).astype(np.float64)

    def cos(a: np.ndarray, b: np.ndarray) -> float:
        return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))

    total = sum(
        cos(flat[i * k + j], flat[(i + 1) * k + j])
        for i in range(layers // k - 1)
        for j in range(k)
    )
    return total / (layers - k)


@given(
    k=st.integers(1, 4), blocks=st.integers(2, 4), size=st.integers(1, 6), seed=st.integers(0, 99)
)
@settings(max_examples=30)
def test_similarity_is_the_formula_and_lies_between_minus_one_and_one(
    k: int, blocks: int, size: int, seed: int
) -> None:
    theta = np.random.default_rng(seed).normal(size=(k * blocks, size, 2)).astype(np.float32)
    found = float(similarity_at(k, theta))
    assert found == pytest.approx(by_hand(theta, k), abs=1e-5)
    assert -1.0001 <= found <= 1.0001


def test_equal_blocks_have_similarity_one_and_no_penalty() -> None:
    params = init(small_model("2x1"))
    doubled = jax.tree.map(lambda x: jnp.concatenate([x, x]), params["segment_0"])
    penalty, similarity = CosineRegularizer(2, 10.0)({**params, "segment_0": doubled})
    assert float(penalty) == pytest.approx(0.0, abs=1e-4)
    assert all(float(value) == pytest.approx(1.0, abs=1e-5) for value in similarity.values())


def test_layers_are_taken_across_segments_in_order() -> None:
    one, two = init(small_model("4x1")), init(small_model("1x1,3x1"))
    layers = one["segment_0"]
    parts = {
        "segment_0": jax.tree.map(lambda x: x[:1], layers),
        "segment_1": jax.tree.map(lambda x: x[1:], layers),
    }
    found, expected = layer_groups({**two, **parts}), layer_groups(one)
    assert found.keys() == expected.keys()
    assert "attention/query/kernel" in found and "mlp_norm/scale" in found
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_a_gradient_at_zero_is_finite() -> None:
    grad = jax.grad(lambda theta: similarity_at(1, theta))(jnp.zeros((2, 3)))
    assert np.isfinite(grad).all()


@pytest.mark.parametrize(
    ("plan", "block", "message"),
    [
        ("2x2", 1, "is looped already.*config.model.plan=4x1"),
        ("6x1", 4, "does not cut the 6 layers"),
        ("6x1", 6, "into two or more equal blocks"),
    ],
)
def test_a_plan_without_blocks_is_refused(plan: str, block: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        CosineRegularizer.for_plan(LoopPlan.parse(plan), block, 1.0)


def run(workdir: pathlib.Path, **overrides: Any) -> list[dict[str, float]]:
    fields: dict[str, Any] = dict(
        model__plan="2x1", train__steps=300, train__log_every=100, eval__every=300
    )
    fields |= dict(checkpoint__every=300, optimizer__learning_rate=1e-2)
    train(make_job(small_config(**{**fields, **overrides})), epath.Path(workdir))
    lines = [json.loads(x) for x in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "train/loss" in line]


def test_training_with_it_makes_blocks_similar_and_logs_each_group(tmp_path: pathlib.Path) -> None:
    drawn = run(tmp_path / "on", regularizer__block=1, regularizer__strength=10.0)
    assert drawn[-1]["train/similarity"] > 0.95
    groups = {name for name in drawn[-1] if name.startswith("train/similarity/")}
    assert "train/similarity/attention/query/kernel" in groups and len(groups) == 8
    mean = np.mean([drawn[-1][name] for name in groups])
    assert drawn[-1]["train/similarity"] == pytest.approx(mean, rel=1e-5)


def test_strength_zero_changes_nothing(tmp_path: pathlib.Path) -> None:
    short = dict(train__steps=20, train__log_every=10)
    without = run(tmp_path / "without", **short)
    zero = run(tmp_path / "zero", regularizer__block=1, regularizer__strength=0.0, **short)
    assert [x["train/loss"] for x in zero] == [x["train/loss"] for x in without]
    assert zero[-1]["train/similarity"] < 0.5
