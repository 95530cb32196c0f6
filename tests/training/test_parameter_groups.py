"""Parameters by their paths: rates of their own, and those that are not trained."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from helpers import init, random_rows, small_config, small_model
from hypothesis import given
from hypothesis import strategies as st

from looped_jax.config import validate
from looped_jax.cost import compiled
from looped_jax.data.pipeline import train_batches
from looped_jax.errors import UserError
from looped_jax.parallel.mesh import put_batch
from looped_jax.training.checkpoint import Checkpointer, restore, start_from
from looped_jax.training.job import Job, abstract_batch, jitted_train_step, make_job
from looped_jax.training.optimizer import make_optimizer
from looped_jax.training.parameter_groups import group_rates, matches
from looped_jax.training.state import init_state, parameter_axes

NAMES = ("adafactor", "adamw", "muon", "sgd")


def by_path(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(p, simple=True, separator="/"): leaf for p, leaf in leaves}


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=4), st.integers(1, 4))
def test_a_path_chooses_all_that_is_below_it_and_nothing_else(parts: list[str], count: int) -> None:
    path = "/".join(parts)
    assert matches(path, "/".join(parts[:count]))
    assert matches(path, "*")
    assert not matches(path, f"{path}/kernel")
    assert not matches(path, path[:-1])


@pytest.mark.parametrize("name", NAMES)
def test_a_groups_factor_scales_its_updates_and_decay_and_no_others(name: str) -> None:
    model = small_model("1x1,1x1", tied_output=False)
    params, axes = init(model), parameter_axes(model)
    rates = (("segment_1/*/mlp", 0.5), ("segment_*", 0.25), ("embed", 3.0))
    updates = []
    for chosen in ((), rates):
        optimizer = make_optimizer(
            small_config(
                optimizer__name=name, optimizer__weight_decay=0.1, optimizer__group_rates=chosen
            ).optimizer,
            10,
            axes,
        )
        grads = jax.tree.map(lambda p: jnp.cos(9 * p), params)
        updates.append(by_path(optimizer.update(grads, optimizer.init(params), params)[0]))
    plain, scaled = updates
    for path, update in plain.items():
        factor = 3.0 if path.startswith("embed") else 0.25 if path.startswith("segment") else 1.0
        factor = 0.5 if path.startswith("segment_1") and "/mlp/" in path else factor
        assert np.any(update)
        np.testing.assert_allclose(scaled[path], factor * update, rtol=1e-6, err_msg=path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("frozen", ("segment_0/layer",), r"frozen: 'segment_0/layer' is no .*; did you mean 'segm"),
        ("frozen", ("zzz",), "'zzz' is no parameter's path; there are embed, final_norm, segment_"),
        ("frozen", ("*",), "is every parameter: nothing is trained"),
        ("frozen", ("segment_*", "segment_0"), "'segment_0' chooses is chosen by patterns before"),
        ("group_rates", (("embd", 0.1),), r"group_rates: 'embd' is no .*; did you mean 'embed'\?"),
        ("group_rates", (("*", 0.1), ("embed", 1)), "all that 'embed' chooses is chosen by"),
    ],
)
def test_a_pattern_that_chooses_nothing_says_so(key: str, value: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        make_job(small_config(**{f"optimizer__{key}": value}))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("group_rates", ("embed",), r"'embed' is not \(a parameter's path, factor\)"),
        ("group_rates", (("embed", -1.0),), "is not"),
        ("group_rates", (("embed", True),), "is not"),
        ("group_rates", (("embed", 1.0), ("embed", 2.0)), "'embed' is there twice"),
        ("frozen", (3,), "3 is not a parameter's path"),
        ("frozen", ("",), "'' is not a parameter's path"),
        ("ema", 1.0, "config.optimizer.ema=1.0 must be at least 0 and less than 1"),
        ("decay_fraction", 1.5, "must be at least 0 and at most 1"),
        ("decay_form", "cube", "is not one of linear, sqrt"),
    ],
)
def test_what_no_config_can_mean_is_refused(key: str, value: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        validate(small_config(**{f"optimizer__{key}": value}))


def test_without_patterns_every_rate_is_the_whole_one() -> None:
    rates = group_rates(small_config().optimizer, parameter_axes(small_model("2x2")))
    assert set(jax.tree.leaves(rates)) == {1.0}


FROZEN = ("embed", "segment_0/layers/*/attention")


def trained(steps: int = 3, **overrides: Any) -> tuple[Job, Any, Any, dict[str, Any]]:
    """The job, its first and last state, and the last step's metrics."""
    job = make_job(small_config(mesh__data=1, model__plan="2x1,1x2", **overrides))
    state = init_state(job.model, job.optimizer, 0, job.layout)
    first = jax.device_get(state)
    step, metrics = jitted_train_step(job), {}
    with job.context():
        for i in range(steps):
            batch = random_rows(rows=16, length=job.data.length, vocab=9, seed=i)
            state, metrics = step(state, put_batch(batch, job.mesh))
    return job, first, jax.device_get(state), metrics


@pytest.mark.parametrize("name", NAMES)
def test_what_is_frozen_stays_and_has_no_state_and_the_rest_is_trained(name: str) -> None:
    job, first, last, _ = trained(
        optimizer__name=name, optimizer__frozen=FROZEN, optimizer__weight_decay=0.1
    )
    before, after = by_path(first.params), by_path(last.params)
    for path, value in before.items():
        is_frozen = any(matches(path, pattern) for pattern in FROZEN)
        assert np.array_equal(value, after[path]) == is_frozen, path
        kept = [at for at in by_path(job.layout.abstract.optimizer) if f"/{path}/" in f"/{at}/"]
        assert not (is_frozen and kept)


def test_what_is_frozen_counts_in_no_norm() -> None:
    # Clipped by the norm of what is trained: SGD's update then has the norm of the clipping.
    overrides = dict(
        optimizer__name="sgd",
        optimizer__clip_norm=1e-3,
        optimizer__learning_rate=1.0,
        optimizer__schedule="constant",
        optimizer__warmup_steps=0,
    )
    frozen = ("embed", "segment_0", "final_norm")
    _, first, last, metrics = trained(1, **overrides, optimizer__frozen=frozen)
    moved = jax.tree.map(lambda a, b: np.sum(np.square(b - a)), first.params, last.params)
    assert float(np.sqrt(sum(jax.tree.leaves(moved)))) == pytest.approx(1e-3, rel=1e-3)
    _, _, _, whole = trained(1, **overrides)
    assert float(metrics["loss"]) == pytest.approx(float(whole["loss"]), rel=1e-6)
    assert 1e-3 < float(metrics["grad_norm"]) < 0.9 * float(whole["grad_norm"])


def test_the_regulariser_has_no_gradient_in_what_is_frozen() -> None:
    norms = {}
    for frozen, strengths in {("segment_0",): (0, 100), ("embed",): (0, 100)}.items():
        for strength in strengths:
            job = make_job(
                small_config(
                    mesh__data=1,
                    model__plan="2x1",
                    optimizer__frozen=frozen,
                    regularizer__block=1,
                    regularizer__strength=float(strength),
                )
            )
            state = init_state(job.model, job.optimizer, 0, job.layout)
            with job.context():
                batch = random_rows(rows=16, length=job.data.length, vocab=9)
                _, metrics = jitted_train_step(job)(state, put_batch(batch, job.mesh))
            norms[frozen[0], strength] = float(metrics["grad_norm"])
    assert norms["segment_0", 100] == pytest.approx(norms["segment_0", 0], rel=1e-6)
    assert norms["embed", 100] > 2 * norms["embed", 0]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("frozen", [(), FROZEN])
def test_a_checkpoint_holds_the_state_of_any_optimizer(
    name: str, frozen: tuple[str, ...], tmp_path: pathlib.Path
) -> None:
    config = dict(optimizer__name=name, optimizer__frozen=frozen, optimizer__ema=0.9)
    job, _, state, _ = trained(1, **config)
    state = jax.device_put(state, job.layout.shardings)
    batches = train_batches(job.data, job.config)
    with Checkpointer(epath.Path(tmp_path), keep=1) as checkpointer:
        checkpointer.save(4, state, batches, job.config.to_dict())
    path = epath.Path(tmp_path / "checkpoints" / "4")
    taken = start_from(path, job.layout, job.optimizer, train_batches(job.data, job.config))
    assert taken[1].startswith("goes on")
    for found in (restore(path, job.layout, batches), taken[0]):
        assert jax.tree.structure(found) == jax.tree.structure(state)
        jax.tree.map(np.testing.assert_array_equal, found, state)


def step_flops(**overrides: Any) -> tuple[float, float]:
    """Of the compiled step, and as counted."""
    wide = dict(model__d_model=64, model__d_ff=256, model__plan="2x1,1x2", mesh__data=1)
    job = make_job(small_config(**wide, **overrides))
    with job.context():
        lowered = jitted_train_step(job).lower(job.layout.abstract, abstract_batch(job))
    found = compiled.cost(lowered.compile().as_text(), lambda _: 0.0).flops
    return found, job.mean_step_flops


@pytest.fixture(scope="module")
def all_flops() -> float:
    found, counted = step_flops()
    assert found == pytest.approx(counted, rel=0.02)
    return found


@pytest.mark.parametrize(
    ("frozen", "share"),
    [
        # Of a layer's forward, backward to its input and backward to its kernels, a third each:
        (("segment_1/layers",), 5 / 6),  # without the kernels of half of the layers,
        (("embed", "segment_0"), 2 / 3),  # without the way back through them,
        (("segment_*/mlp",), 7 / 9),  # and without the kernels that have two thirds.
    ],
)
def test_gradients_of_what_is_frozen_are_neither_computed_nor_counted(
    all_flops: float, frozen: tuple[str, ...], share: float
) -> None:
    found, counted = step_flops(optimizer__frozen=frozen)
    assert found / all_flops == pytest.approx(share, abs=0.05)
    assert found == pytest.approx(counted, rel=0.02)
    parts, _ = step_flops(optimizer__frozen=frozen, train__grad_accumulation=2)
    assert parts == pytest.approx(counted, rel=0.02)
