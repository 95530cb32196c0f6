import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from looped_jax.errors import UserError
from looped_jax.inference.sampling import Sampling, sample
from looped_jax.models.output import NEVER

LOGITS = jnp.log(jnp.array([[0.5, 0.25, 0.15, 0.1]]))


def keys(seed: int, count: int) -> jax.Array:
    return jax.random.split(jax.random.key(seed), count)


def drawn(sampling: Sampling, count: int = 4000) -> np.ndarray:
    """Shares of each token in many draws."""
    logits = jnp.repeat(LOGITS, count, axis=0)
    tokens = sample(logits, keys(0, count), sampling)
    return np.bincount(np.asarray(tokens), minlength=4) / count


def test_greedy_takes_the_likeliest() -> None:
    assert drawn(Sampling()).tolist() == [1, 0, 0, 0]


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(temperature=1.0), [0.5, 0.25, 0.15, 0.1]),
        # p^2, normalised: 0.25, 0.0625, 0.0225, 0.01 of 0.345.
        (Sampling(temperature=0.5), [0.725, 0.181, 0.065, 0.029]),
        (Sampling(temperature=1.0, top_k=2), [2 / 3, 1 / 3, 0, 0]),
        (Sampling(temperature=1.0, top_k=99), [0.5, 0.25, 0.15, 0.1]),
        # 0.5 + 0.25 do not reach 0.8, with 0.15 they do.
        (Sampling(temperature=1.0, top_p=0.8), [0.5 / 0.9, 0.25 / 0.9, 0.15 / 0.9, 0]),
        (Sampling(temperature=1.0, top_p=0.1), [1, 0, 0, 0]),
        # Within the two likeliest p is 2/3 and 1/3: the first alone reaches 0.6.
        (Sampling(temperature=1.0, top_k=2, top_p=0.6), [1, 0, 0, 0]),
    ],
)
def test_draws_follow_the_cut_distribution(sampling: Sampling, expected: list[float]) -> None:
    shares = drawn(sampling)
    np.testing.assert_allclose(shares, expected, atol=0.03)
    np.testing.assert_array_equal(shares > 0, np.array(expected) > 0)


@given(st.floats(0.05, 1.0), st.integers(0, 8), st.integers(0, 100))
def test_the_likeliest_token_is_always_possible(top_p: float, top_k: int, seed: int) -> None:
    logits = jax.random.normal(jax.random.key(seed), (64, 8)) * 3
    tokens = sample(logits, keys(seed, 64), Sampling(1.0, top_k, top_p))
    ranks = jnp.sum(logits > jnp.take_along_axis(logits, tokens[:, None], 1), axis=1)
    if top_k:
        assert ranks.max() < top_k
    one = Sampling(1.0, top_k=1, top_p=top_p)
    np.testing.assert_array_equal(sample(logits, keys(seed, 64), one), logits.argmax(-1))


def test_values_that_make_no_sense_are_refused() -> None:
    for bad in (dict(top_k=-1), dict(top_p=0.0), dict(top_p=1.5), dict(top_p=math.nan)):
        with pytest.raises(UserError, match="must not be negative"):
            Sampling(**bad)
    for temperature in (-1.0, math.nan, math.inf):
        with pytest.raises(UserError, match="must be a number from 0"):
            Sampling(temperature)


@given(
    st.sampled_from([1e-45, 1e-3, 1.0, 20.0, 1e30]), st.integers(0, 8), st.floats(0.05, 1.0),
    st.integers(0, 100),
)  # fmt: skip
def test_what_pads_the_vocabulary_is_never_drawn(
    temperature: float, top_k: int, top_p: float, seed: int
) -> None:
    logits = jax.random.normal(jax.random.key(seed), (256, 8)).at[:, 5:].set(NEVER)
    tokens = sample(logits, keys(seed, 256), Sampling(temperature, top_k, top_p))
    assert tokens.max() < 5


def test_a_rows_draw_does_not_depend_on_the_rows_beside_it() -> None:
    logits = jax.random.normal(jax.random.key(1), (8, 8))
    together = sample(logits, keys(0, 8), Sampling(1.0))
    alone = [sample(logits[i : i + 1], keys(0, 8)[i : i + 1], Sampling(1.0))[0] for i in range(8)]
    assert together.tolist() == [int(token) for token in alone]
