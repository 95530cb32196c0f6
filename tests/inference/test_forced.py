"""Scores and held-out rows with a cache that loops share: what decoding would give each token, one
after the other, were it told what to say."""

import functools
from typing import Any

import jax
import numpy as np
import pytest
from helpers import random_params, small_config, small_model
from hypothesis import given
from hypothesis import strategies as st

from looped_jax.data.documents import Document, Turn
from looped_jax.data.rows import answer_rows
from looped_jax.data.text import pack_in_memory
from looped_jax.data.vocabulary import Bytes
from looped_jax.evaluation.held_out import Evaluator, HeldOut
from looped_jax.inference.cache import cache_bytes, decode, prefill
from looped_jax.inference.forced import prompts_of
from looped_jax.inference.generator import Generator
from looped_jax.inference.policy import EXACT, Policy
from looped_jax.parallel.mesh import make_mesh

LENGTH = 24
MODEL = small_model(
    "1x1,1x4,1x1", vocab_size=264, max_length=LENGTH, num_kv_heads=2, loop=(("gate", "linear"),)
)
PAIRS = [
    ([1, 5, 6, 9], [7, 8, 20]),
    ([1], [30, 4, 5, 6, 7, 8]),
    ([1, 9, 9, 3, 4, 5, 6, 7], [11]),
    ([1, 4], [12, 13, 14, 3]),
]
CASES = [
    ("last", "none"),
    ("first", "none"),
    ("ring:3", "cdf:0.6"),
    ("mean", "kl:0.2"),
]


@pytest.fixture(scope="module")
def params() -> Any:
    return random_params(MODEL)


def generator(params: Any, policy: Policy, batch_size: int = 4, **mesh: int) -> Generator:
    config = small_config(**{f"mesh__{k}": v for k, v in {"data": 1, **mesh}.items()})
    parts = (MODEL, params, make_mesh(config), config.mesh.rules)
    return Generator(*parts, batch_size=batch_size, policy=policy)


@functools.cache
def reader(policy: Policy) -> tuple[Any, Any]:
    """Prefill and decode, compiled."""
    read = jax.jit(lambda p, t, n: prefill(MODEL, p, t, n, 24, policy=policy))
    return read, jax.jit(lambda p, t, c: decode(MODEL, p, t, c, policy=policy))


def by_decoding(
    params: Any, policy: Policy, context: list[int], said: list[int]
) -> tuple[list[float], list[int], bool]:
    """log p of what is said, its loops, and whether it is greedy: with the cache itself."""
    tokens = np.zeros((1, 12), np.int32)
    tokens[0, : len(context)] = context
    read, step = reader(policy)
    logits, cache = read(params, tokens, np.array([len(context)], np.int32))
    log_p, depths, greedy = [], [], True
    for token in said:
        log_p.append(float(jax.nn.log_softmax(logits[0])[token]))
        depths.append(4 if cache.depth_B is None else int(cache.depth_B[0]))
        greedy &= int(logits[0].argmax()) == token
        logits, cache = step(params, np.array([token], np.int32), cache)
    return log_p, depths, greedy


@pytest.mark.parametrize(("cache", "exit"), CASES)
def test_a_score_is_what_decoding_with_that_cache_gives(params: Any, cache: str, exit: str) -> None:
    policy = Policy.parse(cache, exit)
    own = generator(params, policy)
    scored = own.score(PAIRS)
    assert own.usage.cache_bytes == cache_bytes(MODEL.config, 4, 16, policy=policy)
    whole = generator(params, Policy.parse("per_loop", exit)).score(PAIRS)
    for row, of, pair in zip(scored, whole, PAIRS, strict=True):
        log_p, depths, greedy = by_decoding(params, policy, *pair)
        np.testing.assert_allclose(row.log_p, log_p, rtol=1e-4, atol=1e-4)
        assert (row.depths, row.greedy) == (depths, greedy)
        # What follows the context was read with all loops; behind it the cache is seen.
        np.testing.assert_allclose(row.log_p[0], of.log_p[0], rtol=1e-4, atol=1e-4)
    assert any(
        np.abs(row.log_p - of.log_p).max() > 1e-3 for row, of in zip(scored, whole, strict=True)
    )


def test_what_is_generated_with_a_cache_is_greedy_when_it_is_scored_with_it(params: Any) -> None:
    policy = Policy.parse("last", "none")
    own = generator(params, policy)
    contexts = [context for context, _ in PAIRS]
    made = own.generate(contexts, 8)
    said = [(context, row.tokens) for context, row in zip(contexts, made, strict=True)]
    said = [pair for pair in said if pair[1]]
    assert len(said) > 1
    assert all(row.greedy for row in own.score(said))
    assert not all(row.greedy for row in generator(params, EXACT).score(said))


def test_eight_devices_score_what_one_does(params: Any) -> None:
    policy = Policy.parse("ring:2", "cdf:0.6")
    expected = generator(params, policy, 1).score(PAIRS)
    there = generator(params, policy, data=2, fsdp=2, tensor=2).score(PAIRS)
    for row, of in zip(there, expected, strict=True):
        assert row.depths == of.depths
        np.testing.assert_allclose(row.log_p, of.log_p, rtol=1e-4, atol=1e-4)


class FixedRows:
    """A row source over rows made beforehand."""

    fingerprint, vocab_size = "", 264

    def __init__(self, rows: dict):
        self._rows = rows
        self.num_rows, self.length = rows["tokens"].shape

    def rows(self, indices: np.ndarray) -> dict:
        return {key: value[indices] for key, value in self._rows.items()}


def evaluated(params: Any, held_out: HeldOut, policy: Policy, **mesh: int) -> dict[str, float]:
    config = small_config(**{f"mesh__{k}": v for k, v in {"data": 2, **mesh}.items()})
    evaluator = Evaluator(MODEL, make_mesh(config), config.mesh.rules, policy=policy)
    found = evaluator(params, held_out)
    assert found is not None
    return found


def test_held_out_answers_are_right_where_generation_with_that_cache_is(params: Any) -> None:
    policy = Policy.parse("last", "none")
    own = generator(params, policy)
    rng = np.random.default_rng(0)
    inputs = rng.integers(3, 264, size=(9, 5))
    answers = rng.integers(3, 264, size=(9, 3))
    prompts = [[1, *row] for row in inputs]
    made = own.generate(prompts, 3)
    for i, row in enumerate(made):
        if i % 2 == 0 and len(row.tokens) == 3 and min(row.tokens) > 2:
            answers[i] = row.tokens
    right = [row.tokens == answer.tolist() for row, answer in zip(made, answers, strict=True)]
    assert 2 <= sum(right) < 9
    held_out = HeldOut.from_source("task", FixedRows(answer_rows(inputs, answers, LENGTH)), 9, 4)
    found = evaluated(params, held_out, policy)
    assert found["eval/task/accuracy"] == pytest.approx(sum(right) / 9)
    scores = own.score(list(zip(prompts, answers.tolist(), strict=True)))
    nats = -sum(row.total for row in scores) / 27
    assert found["eval/task/loss"] == pytest.approx(nats, rel=1e-4)
    assert evaluated(params, held_out, EXACT)["eval/task/loss"] != pytest.approx(nats, rel=1e-4)


@functools.cache
def packed() -> Any:
    texts = ("The quick brown fox jumps over the lazy dog.", "Ja.", "öfter", "x" * 30)
    documents = (Document((Turn("", text),), "en") for text in texts)
    return pack_in_memory(documents, Bytes(), length=LENGTH)


@pytest.mark.parametrize(("cache", "exit"), [("last", "none"), ("ring:2", "cdf:0.6")])
def test_documents_of_a_packed_row_see_their_own_tokens_in_the_cache(
    params: Any, cache: str, exit: str
) -> None:
    policy = Policy.parse(cache, exit)
    source = packed()
    rows = source.rows(np.arange(source.num_rows))
    pairs = []  # Rotary angles know distances only: what is cut in two is scored alike.
    for row, ids in enumerate(rows["segment_ids"]):
        for document in set(ids[ids > 0].tolist()):
            here = ids == document
            tokens = rows["tokens"][row, here].tolist()
            pairs.append((tokens[:1], [*tokens[1:], int(rows["targets"][row, here][-1])]))
            assert rows["loss_weights"][row, here].all()
    assert len(pairs) > source.num_rows
    scores = generator(params, policy).score(pairs)
    tokens = sum(len(row.log_p) for row in scores)
    nats = -sum(row.total for row in scores) / tokens
    held_out = HeldOut.from_source("text", source, 100, 4)
    mesh = {"sequence": 2} if exit == "none" else {"fsdp": 2, "tensor": 2}
    found = evaluated(params, held_out, policy, **mesh)
    assert found["eval/text/loss"] == pytest.approx(nats, rel=1e-4)
    if exit != "none":
        used = np.mean([depth for row in scores for depth in row.depths])
        assert found["eval/text/loops_used"] == pytest.approx(used)


@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=5), min_size=1, max_size=4))
def test_a_prompt_ends_with_the_first_token_whose_next_one_is_asked_for(
    documents: list[list[bool]],
) -> None:
    begins = [asked for document in documents for asked in document]
    ids = [i + 1 for i, document in enumerate(documents) for _ in document]
    padded = 20 - len(begins)
    expected = [
        True not in document[:place] for document in documents for place in range(len(document))
    ]
    found = prompts_of(
        np.array([begins + [False] * padded]), np.array([ids + [0] * padded], np.int32)
    )
    assert found[0].tolist() == expected + [True] * padded
