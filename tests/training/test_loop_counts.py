"""Loop counts of training steps: their distributions, that they follow from seed, step and row, and
what is refused."""

import math
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import small_config
from hypothesis import given
from hypothesis import strategies as st

from looped_jax.data.pipeline import train_batches
from looped_jax.errors import UserError
from looped_jax.models.loops.base import Counts, LoopState
from looped_jax.models.loops.counted import counted_loops
from looped_jax.parallel.mesh import put_batch
from looped_jax.training.count_bounds import reached, share_of_at_least
from looped_jax.training.job import jitted_train_step, make_job
from looped_jax.training.loop_counts import LoopCounts, mean_counts
from looped_jax.training.state import init_state


def counts_of(plan: str = "1x1,1x8", **fields: Any) -> LoopCounts:
    keys = {f"counts__{name}": value for name, value in fields.items()}
    found = LoopCounts.from_config(small_config(model__plan=plan, **keys))
    assert found is not None
    return found


def drawn(counts: LoopCounts, steps: int = 4000, rows: int = 1) -> np.ndarray:
    def at(step: Any) -> Any:
        return counts(jax.random.fold_in(jax.random.key(0), step), step, rows)

    return np.asarray(jax.jit(jax.vmap(at))(jnp.arange(steps)))


@pytest.mark.parametrize(
    ("distribution", "mean", "deviation"),
    [
        # Var of a Poisson with a log-normal rate: M + M^2 (e^(s^2) - 1), s = 1/2.
        ("lognormal_poisson", 9.0, (8 + 64 * (np.exp(0.25) - 1)) ** 0.5),
        ("poisson", 8.0, 8**0.5),
        ("uniform", 8.0, ((15**2 - 1) / 12) ** 0.5),
    ],
)
@pytest.mark.parametrize("by", ["step", "row"])
def test_drawn_counts_have_the_mean_and_spread_of_their_distribution(
    distribution: str, mean: float, deviation: float, by: str
) -> None:
    counts = counts_of(distribution=distribution, gradient_loops=4, by=by)
    found = drawn(counts, 500, 8) if by == "row" else drawn(counts)
    assert found.min() >= 1 and found.dtype == np.int32
    assert found.mean() == pytest.approx(mean, abs=4 * deviation / 4000**0.5)
    assert found.std() == pytest.approx(deviation, rel=0.1)


def test_a_step_has_one_count_and_a_row_its_own() -> None:
    by_step = drawn(counts_of(distribution="poisson", gradient_loops=4), 50, 6)
    assert np.all(by_step == by_step[:, :1]) and len(np.unique(by_step)) > 3
    by_row = drawn(counts_of(distribution="poisson", gradient_loops=4, by="row"), 50, 6)
    assert np.any(by_row != by_row[:, :1])
    # A row's count does not depend on how many rows there are beside it.
    fewer = drawn(counts_of(distribution="poisson", gradient_loops=4, by="row"), 50, 3)
    np.testing.assert_array_equal(by_row[:, :3], fewer)


def test_no_more_loops_are_drawn_than_the_bound() -> None:
    found = drawn(counts_of(distribution="lognormal_poisson", most=10), 500)
    assert found.max() == 10


def test_what_has_a_bound_by_itself_needs_no_other() -> None:
    counts = counts_of(distribution="uniform")
    assert counts.with_gradient_at_most == 15
    assert drawn(counts).max() == 15
    assert counts_of(distribution="uniform", most=99).with_gradient_at_most == 15
    assert counts_of(distribution="uniform", most=5).with_gradient_at_most == 5


@pytest.mark.parametrize("distribution", ["uniform", "poisson", "lognormal_poisson"])
def test_how_often_many_loops_are_drawn_is_what_draws_say(distribution: str) -> None:
    found = drawn(counts_of(distribution=distribution, gradient_loops=1), 20_000)
    for count in (1, 2, 5, 8, 12, 15):
        share = share_of_at_least(distribution, 8, count)
        assert np.mean(found >= count) == pytest.approx(share, abs=0.01)
    most = reached(distribution, 8)
    assert np.mean(found > most) < 0.002
    if distribution != "uniform":
        assert share_of_at_least(distribution, 8, most) < 1e-3
        assert share_of_at_least(distribution, 8, most - 1) >= 1e-3


@given(st.sampled_from(["poisson", "lognormal_poisson"]), st.integers(1, 10**6))
def test_the_count_that_few_draws_reach_is_above_the_mean_and_not_far(
    distribution: str, mean: int
) -> None:
    assert mean < reached(distribution, mean) < 8 * mean + 10


@given(st.integers(1, 64), st.integers(1, 3000), st.sampled_from(["linear", "one_minus_sqrt"]))
def test_a_curriculum_is_exact_at_every_step(loops: int, steps: int, curriculum: str) -> None:
    counts = LoopCounts(loops, "fixed", "step", 0, 0, curriculum, steps)
    asked = sorted({*range(0, steps + 2, max(1, steps // 40)), steps - 1, steps})
    found = jax.vmap(counts.mean)(jnp.asarray(asked, jnp.int32))
    for step, mean in zip(asked, found.tolist(), strict=True):
        step = min(step, steps)
        if curriculum == "linear":
            exact = math.ceil(Fraction(loops * step, steps))
        else:  # The least whole j with j >= M (1 - sqrt(1 - s / W)).
            rest = Fraction(steps - step, steps)
            exact = next(j for j in range(loops + 1) if Fraction(loops - j, loops) ** 2 <= rest)
        assert mean == max(1, exact)


def test_a_curriculum_compiled_is_not_above_its_exact_steps() -> None:
    counts = counts_of("1x32", curriculum="linear", curriculum_steps=1000)
    found = jax.jit(jax.vmap(counts.mean))(jnp.asarray([375, 376, 750, 875]))
    assert found.tolist() == [12, 13, 24, 28]
    endless = counts_of("1x32", curriculum="linear", curriculum_steps=10**12)
    assert jax.jit(endless.mean)(jnp.asarray(2**31 - 1)) == 1


@pytest.mark.parametrize(
    ("curriculum", "expected"),
    [("linear", [1, 2, 4, 6, 8, 8]), ("one_minus_sqrt", [1, 2, 3, 4, 8, 8])],
)
def test_a_curriculum_rises_to_the_plans_number(curriculum: str, expected: list[int]) -> None:
    counts = counts_of(curriculum=curriculum, curriculum_steps=100)
    steps = jnp.asarray([0, 25, 50, 75, 100, 1000])
    means = jax.vmap(counts.mean)(steps)
    by_hand = {"linear": lambda x: x, "one_minus_sqrt": lambda x: 1 - (1 - x) ** 0.5}[curriculum]
    progress = [0, 0.25, 0.5, 0.75, 1, 1]
    assert means.tolist() == expected == [max(1, np.ceil(8 * by_hand(x))) for x in progress]
    assert counts(jax.random.key(0), jnp.asarray(50), 2).tolist() == [expected[2]] * 2
    assert counts.with_gradient_at_most == 8


def test_the_mean_of_a_run_is_that_of_what_its_steps_log() -> None:
    config = small_config(
        model__plan="1x3",
        counts__distribution="poisson",
        counts__gradient_loops=2,
        counts__by="row",
        mesh__data=1,
    )
    job = make_job(config)
    state = init_state(job.model, job.optimizer, 0, job.layout)
    batches, step, logged = train_batches(job.data, config), jitted_train_step(job), []
    with job.context():
        for _ in range(config.train.steps):
            state, metrics = step(state, put_batch(next(batches), job.mesh))
            logged.append(job.counts.computed(metrics))
    assert step._cache_size() == 1
    found = mean_counts(config)
    assert found == pytest.approx(np.mean(logged, axis=0).tolist(), rel=1e-5)
    assert found is not None
    assert job.mean_step_flops == pytest.approx(np.mean([job.step_flops(c) for c in logged]))
    assert mean_counts(small_config()) is None


@pytest.mark.parametrize(
    ("loops_B", "parts", "computed"),
    [
        ([1, 5, 2, 3], 1, 5.0),  # All rows go as far as the longest.
        ([1, 5, 2, 3], 2, (2 + 5) / 2),  # Rows 0 and 2, rows 1 and 3.
        ([1, 1, 1, 1], 1, 2.0),  # Steps of the backward pass are made in any case.
    ],
)
def test_what_is_computed_counts_rows_that_wait(
    loops_B: list[int], parts: int, computed: float
) -> None:
    counts = LoopCounts.from_config(
        small_config(
            model__plan="1x3",
            counts__distribution="poisson",
            counts__gradient_loops=2,
            counts__by="row",
        )
    )
    assert counts is not None
    assert counts.computed(counts.made(jnp.asarray(loops_B), parts)) == (computed, 2.0)


@pytest.mark.parametrize("loops_B", [[1, 5, 2, 3], [1, 1, 1, 1], [4, 4, 4, 4]])
def test_what_is_computed_is_what_a_pass_goes_through(loops_B: list[int]) -> None:
    counts = LoopCounts(3, "poisson", "row", 0, 2, "none", 0)
    made: list[int] = []

    def step(learned: Any, state: LoopState, loop: Any) -> LoopState:
        jax.debug.callback(lambda loop: made.append(int(loop)), loop)
        return state.replace(x_BTD=state.x_BTD + learned)

    drawn = jnp.asarray(loops_B)
    data = Counts(drawn, jnp.max(drawn), counts.with_gradient_at_most)
    state = counted_loops(step, jnp.float32(1), LoopState(jnp.zeros((4, 1, 1))), data, False)
    jax.effects_barrier()
    assert state.x_BTD[:, 0, 0].tolist() == loops_B
    assert len(made) == counts.computed(counts.made(drawn))[0]


def test_accumulated_parts_have_the_counts_of_their_rows() -> None:
    fields = dict(
        model__plan="1x3",
        counts__distribution="poisson",
        counts__gradient_loops=2,
        counts__by="row",
        optimizer__name="sgd",
        optimizer__clip_norm=0.0,
        mesh__data=1,
    )

    def after_a_step(parts: int) -> Any:
        job = make_job(small_config(train__grad_accumulation=parts, **fields))
        state = init_state(job.model, job.optimizer, 0, job.layout)
        with job.context():
            batch = put_batch(next(train_batches(job.data, job.config)), job.mesh)
            return jitted_train_step(job)(state, batch)[0].params

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-6),
        after_a_step(1),
        after_a_step(4),
    )


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (dict(plan="1x2,1x2", distribution="poisson", most=4), "plan 1x2,1x2 has 2"),
        (dict(distribution="poisson"), "'poisson' has no bound: say config.counts.gradient_loops"),
        (dict(gradient_loops=9), "gradient_loops=9 is more than the 8 loops"),
        (dict(distribution="uniform", most=5, gradient_loops=6), "more than the 5 loops"),
        (dict(distribution="uniform", gradient_loops=16), "more than the 15 loops"),
        (dict(distribution="uniform", most=99, gradient_loops=16), "more than the 15 loops"),
        (
            dict(distribution="poisson", gradient_loops=100),
            r"=100 is more than the 19 loops that fewer than 1 in 1,000 draws reach "
            r"\(distribution='poisson', mean 8\)",
        ),
        (dict(distribution="lognormal_poisson", most=500, gradient_loops=400), "1 in 1,000 draws"),
        (dict(curriculum="linear"), "go together"),
        (dict(curriculum_steps=10, gradient_loops=1), "go together"),
        (dict(by="row", gradient_loops=1), "by='row' is for numbers that are drawn"),
        (dict(most=4, gradient_loops=1), "distribution is 'fixed'"),
    ],
)
def test_counts_that_cannot_work_are_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        counts_of(**fields)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (dict(counts__by="row"), "rows that differ in their loops cannot have parameters per loop"),
        (dict(loop__beyond_trained="refuse"), "draws more than 3 loops"),
    ],
)
def test_counts_that_parameters_per_loop_do_not_allow_are_refused(
    fields: dict[str, Any], said: str
) -> None:
    drawn = dict(counts__distribution="poisson", counts__gradient_loops=2)
    config = small_config(model__plan="1x3", loop__per_loop="embedding", **drawn, **fields)
    with pytest.raises(UserError, match=said):
        make_job(config)


@pytest.mark.parametrize("per_loop", ["embedding", "lora"])
@pytest.mark.parametrize(
    ("plan", "fields", "often"),
    [
        ("1x3", dict(gradient_loops=2), r"in no step, .*\(distribution='fixed', 3\)"),
        ("1x3", dict(gradient_loops=3), ""),
        ("1x3", dict(gradient_loops=1, curriculum="linear", curriculum_steps=9), ""),
        ("1x3", dict(distribution="poisson", gradient_loops=1), ""),
        ("1x40", dict(distribution="poisson", gradient_loops=4), "in fewer than 1 in 1,000 steps"),
        ("1x40", dict(distribution="poisson", gradient_loops=4, most=4), ""),
        ("1x40", dict(distribution="uniform", gradient_loops=4), ""),
    ],
)
def test_parameters_of_a_loop_that_would_never_learn_are_refused(
    per_loop: str, plan: str, fields: dict[str, Any], often: str
) -> None:
    keys = {f"counts__{name}": value for name, value in fields.items()}
    config = small_config(model__plan=plan, loop__per_loop=per_loop, **keys)
    if often:
        with pytest.raises(UserError, match=often):
            make_job(config)
    else:
        make_job(config)


@pytest.mark.parametrize("lanes", ["hyper", "hyperloop"])
def test_lanes_are_trained_by_full_backpropagation_only(lanes: str) -> None:
    config = dict(model__plan="1x3", loop__lanes=lanes)
    for fields in (dict(), dict(counts__distribution="poisson")):
        with pytest.raises(UserError, match=r"full backpropagation only.*gradient_loops=0, not 1"):
            make_job(small_config(**config, **fields, counts__gradient_loops=1))
    make_job(small_config(**config, counts__distribution="poisson", counts__most=3))
