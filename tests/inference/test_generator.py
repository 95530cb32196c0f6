import dataclasses
from typing import Any

import jax
import numpy as np
import pytest
from helpers import init, small_config, small_model, token_logits
from hypothesis import given
from hypothesis import strategies as st

from looped_jax.data.rows import BOS, EOS
from looped_jax.errors import UserError
from looped_jax.inference.generator import Generator, bucket
from looped_jax.inference.policy import Policy
from looped_jax.inference.sampling import Sampling
from looped_jax.models.transformer import LoopedTransformer
from looped_jax.parallel.mesh import make_mesh

LENGTH = 24
PROMPTS = [[BOS, 5, 6], [BOS], [BOS, *range(3, 14)], [BOS, 9], [BOS, 3, 3, 3, 3], [BOS, 12]]


@pytest.fixture(scope="module")
def setup() -> tuple[Any, Any]:
    model = small_model("1x1,1x2", max_length=LENGTH)
    # Scaled up, so that what follows depends on the prompt.
    return model, jax.tree.map(lambda leaf: 3 * leaf, init(model, seed=3))


def generator(setup: tuple, batch_size: int = 4, **mesh: int) -> Generator:
    config = small_config(**{f"mesh__{k}": v for k, v in {"data": 1, **mesh}.items()})
    return Generator(*setup, make_mesh(config), config.mesh.rules, batch_size=batch_size)


@pytest.fixture(scope="module")
def full_logits(setup: tuple) -> Any:
    model, params = setup
    forward = jax.jit(lambda t: token_logits(model, params, t))

    def logits(tokens: list[int]) -> np.ndarray:
        padded = np.zeros((1, LENGTH), np.int32)
        padded[0, : len(tokens)] = tokens
        return np.asarray(forward(padded))[0, : len(tokens)]

    return logits


def naive(full_logits: Any, prompt: list[int], count: int) -> list[int]:
    tokens = list(prompt)
    while len(tokens) - len(prompt) < count and len(tokens) <= LENGTH:
        token = int(full_logits(tokens)[-1].argmax())
        if token == EOS:
            break
        tokens.append(token)
    return tokens[len(prompt) :]


@pytest.mark.parametrize(("batch_size", "chunk"), [(1, 3), (4, 16), (8, 1)])
def test_greedy_generation_is_the_full_model_applied_again_and_again(
    setup: tuple, full_logits: Any, batch_size: int, chunk: int
) -> None:
    made = generator(setup, batch_size).generate(PROMPTS, 9, chunk=chunk)
    expected = [naive(full_logits, prompt, 9) for prompt in PROMPTS]
    assert [row.tokens for row in made] == expected
    assert len({tuple(row) for row in expected}) > 3
    for row in made:
        assert row.ended == (len(row.tokens) < 9)


def test_a_mesh_generates_and_scores_the_same(setup: tuple) -> None:
    alone = generator(setup)
    expected = alone.generate(PROMPTS, 9)
    pairs = [(prompt, row.tokens or [3]) for prompt, row in zip(PROMPTS, expected, strict=True)]
    scores = [score.total for score in alone.score(pairs)]
    for mesh in (dict(data=2, tensor=2), dict(fsdp=2, sequence=2)):
        there = generator(setup, **mesh)
        assert there.generate(PROMPTS, 9) == expected
        np.testing.assert_allclose(
            [s.total for s in there.score(pairs)], scores, rtol=1e-4, atol=1e-5
        )


def test_kernels_for_training_rows_are_not_used_for_prompts(setup: tuple) -> None:
    model, params = setup
    on_tpu = LoopedTransformer(dataclasses.replace(model.config, attention="splash"))
    expected = generator(setup).generate(PROMPTS, 9)
    assert generator((on_tpu, params)).generate(PROMPTS, 9) == expected


def test_an_end_token_ends_a_row(setup: tuple) -> None:
    model, params = setup
    # A model that says EOS whatever it reads: its embedding is by far the largest.
    table = params["embed"]["embedding"]
    always = {**params, "embed": {"embedding": table.at[EOS].set(100 * table.sum(0))}}
    one = generator((model, always)).generate(PROMPTS, 9)
    flipped = {**params, "embed": {"embedding": table.at[EOS].set(-100 * table.sum(0))}}
    other = generator((model, flipped)).generate(PROMPTS, 9)
    ended = [
        (a.ended and not a.tokens) or (b.ended and not b.tokens)
        for a, b in zip(one, other, strict=True)
    ]
    assert any(ended)


@pytest.mark.parametrize("draft", ["none", "1:2"])
def test_what_ends_a_row_is_the_vocabularys_own_end(setup: tuple, draft: str) -> None:
    config = small_config(mesh__data=1)
    parts = (*setup, make_mesh(config), config.mesh.rules)
    policy = Policy.parse("per_loop", "none", draft)
    # An id that no token has: rows end by their length.
    (endless,) = Generator(*parts, policy=policy, eos=-1).generate([PROMPTS[2]], 9)
    assert not endless.ended
    for end in {0, *endless.tokens[:3]}:  # 0 is also what fills up rows.
        (row,) = Generator(*parts, policy=policy, eos=end).generate([PROMPTS[2]], 9)
        assert row.ended == (end in endless.tokens)
        expected = endless.tokens
        assert row.tokens == (expected[: expected.index(end)] if row.ended else expected)


def test_a_row_ends_when_the_model_is_full(setup: tuple, full_logits: Any) -> None:
    (row,) = generator(setup).generate([PROMPTS[2]], 1000)
    assert row.tokens == naive(full_logits, PROMPTS[2], 1000)
    if not row.ended:
        # The last token is said, never read.
        assert len(PROMPTS[2]) + len(row.tokens) == LENGTH + 1


def test_stop_and_progress_are_asked_and_told_as_tokens_come(setup: tuple) -> None:
    told: dict[int, list[int]] = {}
    made = generator(setup).generate(
        PROMPTS,
        9,
        chunk=2,
        stop=lambda new: len(new) >= 4,
        on_tokens=lambda row, new: told.setdefault(row, []).extend(new),
    )
    assert [told[i] for i in range(len(PROMPTS))] == [row.tokens for row in made]
    assert all(len(row.tokens) <= 4 and row.ended for row in made)


def test_draws_follow_from_the_seed(setup: tuple) -> None:
    own = generator(setup)
    hot = Sampling(temperature=5.0)
    one, again, other = (own.generate(PROMPTS, 9, sampling=hot, seed=s) for s in (1, 1, 2))
    assert one == again != other


def test_scores_are_the_log_probabilities_of_the_full_model(setup: tuple, full_logits: Any) -> None:
    own = generator(setup)
    greedy = [row.tokens for row in own.generate(PROMPTS, 4)]
    continuations = [g if i % 2 else [7, 8, 3] for i, g in enumerate(greedy)]
    scored = own.score(list(zip(PROMPTS, continuations, strict=True)))
    for prompt, continuation, found in zip(PROMPTS, continuations, scored, strict=True):
        tokens = [*prompt, *continuation]
        logits = np.array([full_logits(tokens[:i])[-1] for i in range(len(prompt), len(tokens))])
        logits = logits.reshape(-1, 16)
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        expected = log_p[np.arange(len(continuation)), continuation]
        np.testing.assert_allclose(found.log_p, expected, rtol=1e-4, atol=1e-5)
        assert found.total == pytest.approx(expected.sum(), rel=1e-4, abs=1e-5)
        assert found.greedy == (logits.argmax(-1).tolist() == continuation)


def test_prompts_that_do_not_fit_are_named(setup: tuple) -> None:
    own = generator(setup)
    for prompt in ([], [BOS] * (LENGTH + 1)):
        with pytest.raises(UserError, match=f"prompt 1 has {len(prompt)} tokens"):
            own.generate([[BOS], prompt], 3)
    with pytest.raises(UserError, match="pair 0 has 1 tokens of context and 26 in all"):
        own.score([([BOS], [5] * (LENGTH + 1))])
    with pytest.raises(UserError, match="pair 0 has 0 tokens of context"):
        own.score([([], [5])])
    # Nothing has log-likelihood 0: it would be the likeliest of all choices.
    with pytest.raises(UserError, match="pair 1 has no continuation"):
        own.score([([BOS], [5]), ([BOS], [])])


def test_padding_is_counted(setup: tuple) -> None:
    own = generator(setup, batch_size=2)
    own.generate([[BOS] * 20, [BOS] * 2, [BOS] * 2], 1)
    assert own.usage.asked == 24
    # Two short rows of 16 and one of the full 24, its batch bucketed to one row.
    assert own.usage.computed == 2 * 16 + LENGTH
    assert own.usage.padding == pytest.approx(1 - 24 / 56)


@given(st.integers(1, 5000), st.sampled_from([1, 4, 16]))
def test_a_bucket_is_the_next_power_of_two(size: int, smallest: int) -> None:
    found = bucket(size, smallest)
    assert found >= size and found & (found - 1) == 0
    assert found == smallest or found < 2 * size
