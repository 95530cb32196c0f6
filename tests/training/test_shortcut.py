"""A short trajectory beside the long one (training/shortcut.py): drawn as in LoopFormer's code, the
loss and gradient of two whole passes, one compilation, no more computed than its steps."""

import collections
import fractions
import functools
import itertools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    MESHES,
    TWO_MESHES,
    assert_close,
    init,
    random_params,
    random_rows,
    small_config,
    small_model,
    step_on_mesh,
)
from hypothesis import given
from hypothesis import strategies as st

from looped_jax.cost.compiled import cost
from looped_jax.data.pipeline import train_batches
from looped_jax.errors import UserError
from looped_jax.models.flops import train_flops
from looped_jax.models.layers import LayerInputs, norm, rope_angles
from looped_jax.models.loops.time import TimeLayer
from looped_jax.models.transformer import batch_forward
from looped_jax.parallel.mesh import put_batch
from looped_jax.training.job import jitted_train_step, make_job
from looped_jax.training.loop_losses import LoopLosses
from looped_jax.training.shortcut import mean_steps, short_trajectory
from looped_jax.training.state import init_state
from looped_jax.training.train_step import loss_and_grads

LOOPS = 4
ROWS = random_rows(rows=3)
SHORTCUT = dict(model__plan=f"2x{LOOPS}", loop__per_loop="time", loop_loss__kind="shortcut")
WEIGHTS = (0.3, 0.7)


def losses(loops: int = LOOPS) -> LoopLosses:
    overrides = {**SHORTCUT, "model__plan": f"2x{loops}", "loop_loss__weights": WEIGHTS}
    made = LoopLosses.from_config(small_config(**overrides))
    assert made is not None
    return made


@given(st.integers(2, 12), st.integers(0, 2**31))
def test_a_trajectory_has_fewer_steps_and_the_same_length(loops: int, seed: int) -> None:
    units_S = np.asarray(short_trajectory(jax.random.key(seed), loops))
    steps = np.count_nonzero(units_S)
    assert len(units_S) == loops - 1 and units_S.sum() == loops
    assert 1 <= steps < loops and np.all(units_S[:steps] > 0)


def trajectories(left: int, steps: int, chance: fractions.Fraction) -> Iterator[Any]:
    """Each trajectory of so many steps over so many units, and how likely it is."""
    if steps == 1:
        yield (left,), chance
        return
    most = left - (steps - 1)
    for first in range(1, most + 1):
        for rest, p in trajectories(left - first, steps - 1, chance / most):
            yield (first, *rest), p


def test_trajectorys_are_as_likely_as_in_the_papers_code() -> None:
    loops, draws = 5, 20_000
    keys = jax.random.split(jax.random.key(0), draws)
    found = collections.Counter(
        tuple(int(u) for u in units_S if u)
        for units_S in np.asarray(jax.vmap(lambda key: short_trajectory(key, loops))(keys))
    )
    one = fractions.Fraction(1, loops - 1)
    expected = dict(itertools.chain(*(trajectories(loops, s, one) for s in range(1, loops))))
    assert sum(expected.values()) == 1 and len(expected) == 15  # 1 + 4 + 6 + 4.
    assert set(found) <= set(expected)
    for trajectory, chance in expected.items():
        spread = (draws * float(chance)) ** 0.5
        assert abs(found[trajectory] - draws * float(chance)) < 5 * spread, trajectory
    mean = sum(len(trajectory) * p for trajectory, p in expected.items())
    assert mean == fractions.Fraction(mean_steps(loops))


@functools.partial(jax.jit, static_argnums=0)
def timed_layer(config: Any, weights: Any, x: Any, inputs: LayerInputs) -> Any:
    return TimeLayer(config).apply({"params": weights}, x, inputs)[0]


def stream_by_hand(model: Any, params: Any, sizes: list[float]) -> jax.Array:
    """A plain `for` over steps of these sizes."""
    config, part = model.config, params["segment_0"]["per_loop"]
    frequencies = np.asarray([10000 ** (-i / 128) for i in range(128)])

    def mlp(name: str, at: float) -> jax.Array:
        x = np.concatenate([np.cos(at * frequencies), np.sin(at * frequencies)])
        x = jax.nn.silu(x @ part[f"{name}_in"]["kernel"] + part[f"{name}_in"]["bias"])
        return x @ part[f"{name}_out"]["kernel"] + part[f"{name}_out"]["bias"]

    x = params["embed"]["embedding"][ROWS["tokens"]] * config.d_model**0.5
    inputs = LayerInputs(rope_angles(config, ROWS["positions"]), ROWS["segment_ids"])
    at = 0.0
    for size in sizes:
        told = {"time": (mlp("time", at) + mlp("step", size))[None, None]}
        for layer in range(2):
            weights = jax.tree.map(
                lambda leaf, layer=layer: leaf[layer], params["segment_0"]["layers"]["layer"]
            )
            x = timed_layer(config, weights, x, inputs.replace(extra=told))
        at += size
    return norm(config, "n").apply({"params": params["final_norm"]}, x)


def by_hand(model: Any, params: Any, sizes: list[float]) -> tuple[jax.Array, Any]:
    weights_BT = ROWS["loss_weights"] / ROWS["loss_weights"].sum()

    def xent(x_BTD: jax.Array) -> jax.Array:
        log_p_BTV = jax.nn.log_softmax(x_BTD @ params["embed"]["embedding"].T)
        of_target = jnp.take_along_axis(log_p_BTV, ROWS["targets"][..., None], -1)[..., 0]
        return -jnp.sum(weights_BT * of_target)

    long = stream_by_hand(model, params, [1 / LOOPS] * LOOPS)
    short = stream_by_hand(model, params, sizes)
    apart = jnp.sum(weights_BT * ((jax.lax.stop_gradient(long) - short) ** 2).mean(-1))
    parts = {"loss": xent(long), "short/loss": xent(short), "short/distance": apart}
    return parts["loss"] + WEIGHTS[0] * parts["short/loss"] + WEIGHTS[1] * apart, parts


@functools.cache
def compiled(**fields: Any) -> Any:
    model = small_model(f"2x{LOOPS}", loop=(("per_loop", "time"),), **fields)
    return jax.jit(lambda p, batch: loss_and_grads(model, p, batch, losses=losses())), model


def with_trajectory(units: tuple[int, ...]) -> dict[str, Any]:
    sizes_S = np.zeros(LOOPS - 1, np.float32)
    sizes_S[: len(units)] = np.asarray(units) / LOOPS
    return {**ROWS, "trajectory": np.tile(sizes_S, (3, 1))}


def test_the_loss_is_that_of_two_whole_passes() -> None:
    step, model = compiled()
    params = random_params(model, 0.2)
    for units in ((4,), (1, 3), (2, 1, 1)):
        metrics, grads = step(params, with_trajectory(units))
        of_hand = functools.partial(by_hand, model, sizes=[u / LOOPS for u in units])
        (value, parts), expected = jax.value_and_grad(of_hand, has_aux=True)(params)
        assert_close(grads, expected)
        assert_close(metrics, {**parts, "objective": value})
    assert step._cache_size() == 1  # Whatever the trajectory.


def test_the_trajectory_of_equal_steps_is_the_plain_pass_of_so_many_loops() -> None:
    _, model = compiled()
    params = random_params(model, 0.2)
    sizes_BS = np.tile(np.float32([0.5, 0.5, 0.0]), (3, 1))
    along = batch_forward(model, params, ROWS, sizes_BS=sizes_BS).x_BTD
    assert_close(along, batch_forward(model, params, ROWS, loops=2).x_BTD, 1e-5)


@pytest.mark.parametrize("how", [{"unroll": "full"}, {"remat": "loop"}], ids=str)
def test_execution_does_not_change_a_short_trajectory(how: dict[str, Any]) -> None:
    params, batch = random_params(compiled()[1], 0.2), with_trajectory((1, 3))
    assert_close(compiled(**how)[0](params, batch), compiled()[0](params, batch))


@functools.cache
def one_step(name: str) -> Any:
    widths = dict(data__length=8, model__vocab_size=16)
    trajectory = {"trajectory": np.tile(np.float32([0.25, 0.75, 0.0]), (16, 1))}
    config = small_config(**{**widths, **SHORTCUT, **MESHES[name]})
    return step_on_mesh(config, random_rows(rows=16, length=8, vocab=10) | trajectory)


@pytest.mark.parametrize("name", TWO_MESHES)
def test_a_short_trajectory_is_the_same_on_every_mesh(name: str) -> None:
    assert_close(one_step(name), one_step("1"), 1e-4)


WIDE = dict(vocab_size=256, d_model=128, d_ff=512, num_heads=4, num_kv_heads=4, max_length=64)


def program(plan: str, loops: int, trajectory: bool, **fields: Any) -> tuple[Any, Any]:
    model = small_model(plan, unroll="none", loop=(("per_loop", "time"),), **WIDE, **fields)
    rows = random_rows(rows=4, length=64, vocab=256)
    objective = losses(loops) if trajectory else None
    if trajectory:
        rows["trajectory"] = np.tile(np.float32([1.0] + [0.0] * (loops - 2)), (4, 1))
    step = jax.jit(lambda p, b: loss_and_grads(model, p, b, losses=objective))
    return step.lower(init(model), rows).compile(), model.config


def test_only_the_steps_of_a_trajectory_are_computed_and_all_are_counted() -> None:
    made, config = program("1x4", 4, True)
    for steps in (1, 2, 3):
        # Of 3 steps so many are taken; each of them is computed again for its backward pass.
        found = cost(made.as_text(), taken=steps / 3).flops
        expected, none = (train_flops(config, 4, 64, short_loops=taken) for taken in (steps, 0))
        expected += (expected - none) / 3
        assert found == pytest.approx(expected, rel=0.02), steps


def test_a_short_trajectory_keeps_what_its_steps_began_with_and_no_copies_of_weights() -> None:
    needed = [
        program(f"1x{loops}", loops, True, remat="loop")[0].memory_analysis().temp_size_in_bytes
        for loops in (4, 12)
    ]
    stream = 4 * 64 * 128 * 4  # Bytes of x_BTD; the layer's weights are six times as many.
    assert needed[1] - needed[0] < 8 * 2.5 * stream  # Both trajectories' loops begin with one.


def test_a_run_draws_anew_in_every_step_and_the_same_after_a_resume() -> None:
    job = make_job(small_config(**SHORTCUT, mesh__data=1, train__grad_accumulation=2))
    state = init_state(job.model, job.optimizer, 0, job.layout)
    step, batches, loops = jitted_train_step(job), train_batches(job.data, job.config), []
    with job.context():
        batch = put_batch(next(batches), job.mesh)
        for number in range(6):
            again = init_state(job.model, job.optimizer, 0, job.layout)
            again = again.replace(step=jnp.int32(number))
            state, metrics = step(state, batch)
            loops.append(int(metrics["short/loops"]))
            assert int(step(again, batch)[1]["short/loops"]) == loops[-1]
            assert np.isfinite(float(metrics["objective"]))
    assert len(set(loops)) > 1 and step._cache_size() == 1
    assert job.mean_step_flops == pytest.approx(
        np.mean([job.step_flops(short_loops=s) for s in (1, 2, 3)])
    )


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (dict(loop__per_loop="none"), "needs config.loop.per_loop='time', .* it is 'none'"),
        (dict(loop_loss__weights=(0.1,)), "are two, of the short trajectory's loss .* not 1"),
        (dict(loop_loss__kind="expected", loop_loss__weights=(0.1, 0.1)), "'shortcut', not"),
        (dict(model__plan="1x2,1x2"), "one looped segment; plan 1x2,1x2 has 2"),
        (dict(train__z_loss=0.1), "z_loss is for the last loop's"),
        (dict(counts__distribution="uniform", counts__most=4), "config.counts has others"),
    ],
)
def test_what_does_not_go_with_a_short_trajectory_is_refused(
    overrides: dict[str, Any], says: str
) -> None:
    with pytest.raises(UserError, match=says):
        make_job(small_config(**{**SHORTCUT, **overrides}))
