"""The four constructions against the definitions, on the model that trains."""

import functools
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import init, small_model, token_logits
from hypothesis import given, settings
from hypothesis import strategies as st

from looped_jax.data.tasks.phop import hop
from looped_jax.errors import UserError
from looped_jax.theory import chain_of_thought, group_composition, p_hop, simulate_depth
from looped_jax.theory.construction import Construction, Precision
from looped_jax.theory.groups import named_group
from looped_jax.theory.learned import construction_curve
from looped_jax.theory.verify import random_model, smallest_b

# Theorem 5.1.


@pytest.mark.parametrize(("name", "n"), [("s3", 4), ("z2*z2", 5), ("d4", 3), ("z5", 1), ("z3", 6)])
def test_small_groups_are_composed_right_on_every_input(name: str, n: int) -> None:
    group = named_group(name)
    elements_NS = np.array(list(itertools.product(range(group.order), repeat=n)))
    built = group_composition.group_composition(group, n)
    assert np.array_equal(group_composition.answers(built, elements_NS), group.product(elements_NS))


@pytest.mark.parametrize(("name", "n"), [("s5", 128), ("a5", 100)])
def test_groups_that_cannot_be_solved_are_composed_over_long_inputs(name: str, n: int) -> None:
    group = named_group(name)
    elements_NS = np.random.default_rng(0).integers(0, group.order, (16, n))
    built = group_composition.group_composition(group, n)
    assert np.array_equal(group_composition.answers(built, elements_NS), group.product(elements_NS))
    config = built.model.config
    m, bits = 7 if name == "s5" else 6, 8 if n == 128 else 7
    assert config.plan.effective_depth == 7  # ceil(log2 n)
    assert config.num_heads == 2
    assert config.d_ff == group.order**2 + 6 * m
    assert 3 * (m + bits) <= config.d_model <= 3 * (m + bits) + 3  # So that √d is exact.


def test_composition_is_exact_in_bfloat16_too_as_all_its_numbers_are_small() -> None:
    group = named_group("s5")
    elements_NS = np.random.default_rng(1).integers(0, 120, (8, 64))
    built = group_composition.group_composition(group, 64, "bfloat16")
    assert np.array_equal(group_composition.answers(built, elements_NS), group.product(elements_NS))


def test_the_last_position_doubles_what_it_has_composed_with_every_loop() -> None:
    group = named_group("z7")
    built = group_composition.group_composition(group, 8)
    rows = group_composition.trace(built, group, np.ones(8, int))
    assert [row[-1] for row in rows] == ["1", "2", "4", "1"]  # 1, 2, 4 and 8 modulo 7.


# Theorem 5.2.


@pytest.mark.parametrize(
    ("plan", "depth", "distinct"), [("6x4", 24, 6), ("2x3", 6, 2), ("1x1,2x2,1x1", 6, 4)]
)
def test_a_model_of_many_layers_is_one_looped_layer(plan: str, depth: int, distinct: int) -> None:
    model, params = random_model(plan, seed=0)
    rows_BT = np.random.default_rng(0).integers(0, 12, (4, 24)).astype(np.int32)
    want = np.asarray(token_logits(model, params, rows_BT))
    built = simulate_depth.simulate_depth(model, params)
    got = simulate_depth.logits(built, rows_BT)
    np.testing.assert_allclose(got, want, atol=2e-5 * np.abs(want).max())
    config = built.model.config
    assert str(config.plan) == f"1x{depth}"
    assert config.num_heads == distinct * model.config.num_heads
    assert config.d_model - (model.config.d_model + distinct + 2) in range(4)
    # A neuron a layer for the output bias, and L + 2 that count.
    assert config.d_ff == distinct * (model.config.d_ff + 1) + depth + 2


def test_the_start_token_is_never_the_likeliest() -> None:
    model, params = random_model("2x2", seed=1)
    built = simulate_depth.simulate_depth(model, params)
    rows_BT = np.random.default_rng(0).integers(0, 12, (4, 24)).astype(np.int32)
    logits_BTV = built.logits(simulate_depth.tokens(built, rows_BT))
    assert np.argmax(logits_BTV[:, 1:], axis=-1).max() < 12


def test_models_with_tied_output_and_without_biases_or_positions_are_simulated() -> None:
    model = small_model("2x2", norm="none", mlp="relu", positions="none", unroll="none")
    params = init(model)
    rows_BT = np.random.default_rng(0).integers(0, 16, (2, 12)).astype(np.int32)
    want = np.asarray(token_logits(model, params, rows_BT))
    got = simulate_depth.logits(simulate_depth.simulate_depth(model, params), rows_BT)
    np.testing.assert_allclose(got, want, atol=2e-5 * np.abs(want).max())


def test_b_must_exceed_what_idle_neurons_sum_to_and_no_more() -> None:
    model, params = random_model("2x2", seed=0)
    rows_BT = np.random.default_rng(0).integers(0, 12, (4, 24)).astype(np.int32)
    want = np.asarray(token_logits(model, params, rows_BT))
    assert 2 <= smallest_b(model, params, rows_BT, want) <= 12
    # Far above, nothing is lost.
    looped = simulate_depth.simulate_depth(model, params, 2.0**60)
    got = simulate_depth.logits(looped, rows_BT)
    np.testing.assert_allclose(got, want, atol=2e-5 * np.abs(want).max())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"norm": "rmsnorm"}, "norm='none'"),
        ({"norm": "none", "mlp": "gelu"}, "mlp='relu'"),
        ({"norm": "none", "mlp": "relu", "positions": "rope"}, "learned positions"),
    ],
)
def test_models_of_another_class_are_refused(fields: dict[str, str], message: str) -> None:
    model = small_model("2x1", **fields)
    with pytest.raises(UserError, match=message):
        simulate_depth.simulate_depth(model, init(model))


def test_models_of_another_kind_of_loop_are_refused() -> None:
    fields = dict(norm="none", mlp="relu", positions="learned", loop=(("per_loop", "lora"),))
    model = small_model("1x2", **fields)
    with pytest.raises(UserError, match=r"config.loop.per_loop='lora'"):
        simulate_depth.simulate_depth(model, init(model))


# Corollary 5.3.


@pytest.mark.parametrize(
    ("p", "n", "alphabet"), [(1, 8, 2), (2, 16, 2), (3, 16, 3), (5, 32, 4), (37, 96, 3)]
)
def test_hops_are_those_of_the_definition(p: int, n: int, alphabet: int) -> None:
    rng = np.random.default_rng(p)
    rows = [
        np.zeros(n, int),  # Every hop stays where it is.
        np.arange(n) % alphabet,  # The longest chains that move.
        np.arange(n) // 2 % alphabet,
        np.minimum(np.arange(n), alphabet - 1),  # Soon no hop is possible.
        np.arange(n)[::-1] // (n // alphabet + 1),
        *rng.integers(0, alphabet, (12, n)),
    ]
    built = p_hop.p_hop(p, n, alphabet)
    want = [hop(row.tolist(), p) for row in rows]
    assert p_hop.answers(built, np.stack(rows)) == want
    assert str(built.model.config.plan) == f"1x{int(np.log2(p)) + 2}"


def test_long_sequences_and_many_hops_are_right() -> None:
    rng = np.random.default_rng(0)
    rows = np.concatenate([rng.integers(0, 4, (3, 256)), [np.arange(256) % 4]])
    built = p_hop.p_hop(64, 256, 4)
    assert p_hop.answers(built, rows) == [hop(row.tolist(), 64) for row in rows]
    assert str(built.model.config.plan) == "1x8"


@settings(max_examples=20)
@given(st.lists(st.integers(0, 2), min_size=10, max_size=10))
def test_any_sequence_of_three_characters_has_its_three_hops(sequence: list[int]) -> None:
    got = p_hop.answers(_three_hops(), np.array([sequence]))
    assert got == [hop(sequence, 3)]


@functools.cache
def _three_hops() -> Construction:
    return p_hop.p_hop(3, 10, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((0, 8, 2), "p=0"), ((1, 0, 2), "n=0"), ((1, 8, 0), "alphabet=0")],
)
def test_what_is_out_of_range_is_refused(arguments: tuple[int, int, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        p_hop.p_hop(*arguments)


def test_a_type_too_coarse_for_the_scores_is_refused() -> None:
    with pytest.raises(UserError, match="bfloat16 is too coarse"):
        p_hop.p_hop(4, 256, 4, "bfloat16")
    with pytest.raises(UserError, match="float16 is too small"):
        p_hop.p_hop(4, 16, 4, "float16")
    assert Precision(8, 4, 16).enough("bfloat16")


# Theorem 5.4.


@pytest.mark.parametrize("plan", ["2x1", "2x2"])
def test_tokens_of_a_random_models_chain_are_decoded_by_the_loop(plan: str) -> None:
    model, params = random_model(plan, seed=3, length=16)
    inputs_BN = np.random.default_rng(0).integers(0, 12, (16, 8)).astype(np.int32)
    want_BM, margin = chain_of_thought.greedy(model, params, inputs_BN, 8)
    assert margin > 1 / chain_of_thought.SHARPNESS
    built = chain_of_thought.simulate_chain_of_thought(model, params, 8)
    assert np.array_equal(chain_of_thought.answers(built, inputs_BN), want_BM)
    depth = model.config.plan.effective_depth
    assert str(built.model.config.plan) == f"{depth + 2}x8"


def test_a_model_trained_to_print_its_sums_does_so_in_loops() -> None:
    numbers, modulus = 4, 5

    def batch(rng: np.random.Generator, size: int) -> np.ndarray:
        drawn = rng.integers(0, modulus, (size, numbers))
        return np.concatenate([drawn, np.cumsum(drawn, axis=1) % modulus], axis=1).astype(np.int32)

    model = small_model(
        "2x1",
        vocab_size=modulus,
        max_length=2 * numbers,
        d_model=32,
        d_ff=64,
        norm="none",
        mlp="relu",
        bias=True,
        positions="learned",
        unroll="none",
    )
    params = init(model)
    optimizer = optax.adam(3e-3)
    state = optimizer.init(params)

    @jax.jit
    def step(params: object, state: object, rows: jax.Array) -> tuple[object, object]:
        def loss(params: object) -> jax.Array:
            logits = token_logits(model, params, rows)[:, numbers - 1 : -1]
            xent = optax.softmax_cross_entropy_with_integer_labels(logits, rows[:, numbers:])
            return jnp.mean(xent)

        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, updates), state

    rng = np.random.default_rng(0)
    for _ in range(600):
        params, state = step(params, state, batch(rng, 128))
    rows = batch(rng, 64)
    inputs_BN = rows[:, :numbers]
    want_BM, _ = chain_of_thought.greedy(model, params, inputs_BN, numbers)
    assert (want_BM == rows[:, numbers:]).mean() > 0.9  # It has learned something.
    built = chain_of_thought.simulate_chain_of_thought(model, params, numbers)
    assert np.array_equal(chain_of_thought.answers(built, inputs_BN), want_BM)


def test_more_steps_than_fit_are_refused() -> None:
    model, params = random_model("2x1", seed=0, length=8)
    with pytest.raises(UserError, match="m=8 must be 1 to 7"):
        chain_of_thought.simulate_chain_of_thought(model, params, 8)


# The commands.


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (("--construction=group_composition", "--group=z3", "--n=4"), "81 of 81 exact"),
        (("--construction=p_hop", "--p=2", "--n=8", "--cases=5"), "8 of 8 exact"),
        (("--construction=simulate_depth", "--plan=2x1", "--cases=3"), "3 of 3 exact"),
        (("--construction=chain_of_thought", "--plan=1x2", "--m=3", "--cases=4"), "4 of 4 exact"),
    ],
)
def test_the_command_verifies_shows_the_loop_and_draws(
    arguments: tuple[str, ...], shown: str, run_module: Callable[..., object], tmp_path: object
) -> None:
    figure = tmp_path / "f.png"  # type: ignore[operator]
    done = run_module("looped_jax.theory", *arguments, f"--figure={figure}")
    assert done.returncode == 0, done.stderr  # type: ignore[attr-defined]
    assert shown in done.stdout  # type: ignore[attr-defined]
    assert "loop 1" in done.stdout  # type: ignore[attr-defined]
    assert figure.stat().st_size > 1000


def test_a_command_that_cannot_work_says_why_in_one_line(
    fails_in_one_line: Callable[..., str],
) -> None:
    assert "say --construction" in fails_in_one_line("looped_jax.theory")
    coarse = ("--construction=p_hop", "--n=256", "--dtype=bfloat16")
    assert "too coarse" in fails_in_one_line("looped_jax.theory", *coarse)


def test_a_construction_needs_all_of_its_loops() -> None:
    curve = construction_curve("group_s3_n8")
    assert list(curve) == [1, 2, 3]
    assert curve[1] < curve[3] == 1.0
    assert construction_curve("phop_p2_n16")[3] == 1.0
    with pytest.raises(UserError, match="not for igsm"):
        construction_curve("igsm")
