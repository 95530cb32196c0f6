"""Drafting with few loops and verifying with all says what decoding one by one says."""

import functools
from typing import Any

import jax
import numpy as np
import pytest
from helpers import init, small_config, small_model, token_logits

from looped_jax.data.rows import BOS, EOS
from looped_jax.errors import UserError
from looped_jax.inference.cache import Cache, prefill, verify
from looped_jax.inference.generator import Generated, Generator
from looped_jax.inference.policy import Draft, Policy
from looped_jax.inference.sampling import Sampling
from looped_jax.inference.speculative import drafted
from looped_jax.parallel.mesh import make_mesh

LENGTH = 24
LENGTHS = np.array([3, 7, 1, 5], np.int32)
TOKENS = np.random.default_rng(0).integers(3, 16, size=(4, LENGTH)).astype(np.int32)
PROMPTS = [[BOS, 5, 6], [BOS], [BOS, *range(3, 14)], [BOS, 9], [BOS, 3, 3, 3, 3], [BOS, 12]]


def noisy(model: Any, scale: float = 0.3) -> Any:
    """Nothing is zero, and what follows depends on what is read."""
    leaves, tree = jax.tree.flatten(init(model, seed=3))
    rng = np.random.default_rng(0)
    return tree.unflatten(
        [leaf + np.float32(scale * rng.normal(size=leaf.shape)) for leaf in leaves]
    )


def with_loops_that_add(params: Any, share: float, index: int = 1) -> Any:
    """What a segment's layers add to the stream, times ``share``: 0 is a model all of whose loop
    counts say the same."""
    layer = params[f"segment_{index}"]["layers"]["layer"]
    scaled = jax.tree.map(lambda leaf: leaf, layer)
    for block, last in (("attention", "output"), ("mlp", "down")):
        kernel = layer[block][last]["kernel"]
        scaled[block] = {**layer[block], last: {**layer[block][last], "kernel": share * kernel}}
    return {**params, f"segment_{index}": {"layers": {"layer": scaled}}}


MODEL = small_model("1x1,1x4,1x1", num_kv_heads=2, max_length=LENGTH)


@functools.cache
def params(share: float) -> Any:
    return with_loops_that_add(noisy(MODEL), share)


def generator(share: float, draft: str = "none", batch_size: int = 4, **mesh: int) -> Generator:
    config = small_config(**{f"mesh__{k}": v for k, v in {"data": 1, **mesh}.items()})
    parts = (MODEL, params(share), make_mesh(config), config.mesh.rules)
    policy = Policy.parse("per_loop", "none", draft)
    return Generator(*parts, batch_size=batch_size, policy=policy)


full_logits = jax.jit(functools.partial(token_logits, MODEL))


def one_by_one(share: float, count: int) -> list[list[int]]:
    """What follows PROMPTS, by whole passes with all loops; EOS included."""
    found = []
    for prompt in PROMPTS:
        row = list(prompt)
        while len(row) - len(prompt) < count and len(row) <= LENGTH:
            padded = np.zeros((1, LENGTH), np.int32)
            padded[0, : len(row)] = row
            row.append(int(full_logits(params(share), padded)[0, len(row) - 1].argmax()))
            if row[-1] == EOS:
                break
        found.append(row[len(prompt) :])
    return found


def said(rows: list[Generated]) -> list[list[int]]:
    """The same of generated rows."""
    return [row.tokens + [EOS] * row.ended for row in rows]


def block(start_B: np.ndarray, right_B: np.ndarray) -> np.ndarray:
    """Four tokens of each row of TOKENS from start_B, the first right_B of which are its own."""
    place = np.arange(4)
    own = TOKENS[np.arange(4)[:, None], start_B[:, None] + place]
    return np.where(place < right_B[:, None], own, 2)


@pytest.mark.parametrize(
    ("fields", "loops"),
    [
        (dict(plan="1x1,1x4,1x1", num_kv_heads=2, bias=True), None),
        (dict(plan="1x2,2x2", norm="layernorm", tied_output=False, unroll="none"), 3),
        (dict(plan="2x2", positions="learned"), None),
    ],
    ids=str,
)
def test_tokens_read_together_are_read_as_in_a_full_pass(fields: dict, loops: int | None) -> None:
    """Rows of several lengths accept different numbers of tokens, twice, with drafts between."""
    model = small_model(**fields, max_length=LENGTH)
    params, draft = init(model), Draft(1, 3)
    policy = Policy(draft=draft)
    full = jax.jit(lambda p: token_logits(model, p, TOKENS, loops))(params)
    read = jax.jit(lambda p, t, n: prefill(model, p, t, n, LENGTH, loops, policy))
    together = jax.jit(lambda p, t, c: verify(model, p, t, c, loops))
    guess = jax.jit(lambda p, t, c: drafted(model, draft, p, c, t))

    prompts = np.where(np.arange(8) < LENGTHS[:, None], TOKENS[:, :8], 9)  # Rubbish behind.
    _, cache = read(params, prompts, LENGTHS)
    start_B, rows = LENGTHS, np.arange(4)
    for right_B in (np.array([1, 4, 2, 3]), np.array([3, 1, 4, 1])):
        tokens, cache = guess(params, TOKENS[rows, start_B], cache)
        assert tokens.shape == (4, 4) and (tokens[:, 0] == TOKENS[rows, start_B]).all()
        found, cache = together(params, block(start_B, right_B), cache)
        for row, right in enumerate(right_B):
            expected = full[row, start_B[row] :][:right]
            np.testing.assert_allclose(found[row, :right], expected, rtol=3e-4, atol=3e-5)
        cache = cache.replace(generated=cache.generated + right_B)
        start_B = start_B + right_B


def test_a_draft_is_what_the_model_of_few_loops_says() -> None:
    """Where nothing follows the loops, those that draft find in the cache exactly their own."""
    model = small_model("1x1,2x4", max_length=LENGTH)
    params, draft = noisy(model), Draft(2, 5)
    policy = Policy(draft=draft)
    read = jax.jit(lambda p, t, n: prefill(model, p, t, n, LENGTH, policy=policy))
    _, cache = read(params, TOKENS[:, :8], LENGTHS)
    token_B = TOKENS[np.arange(4), LENGTHS]
    found, cache = jax.jit(lambda p, t, c: drafted(model, draft, p, c, t))(params, token_B, cache)
    assert isinstance(cache, Cache) and (cache.generated == 0).all()
    few = jax.jit(lambda t: token_logits(model, params, t, 2))
    whole = np.where(np.arange(LENGTH) <= LENGTHS[:, None], TOKENS, 0)
    for i in range(draft.tokens):
        logits = np.asarray(few(whole))[np.arange(4), LENGTHS + i]
        whole[np.arange(4), LENGTHS + i + 1] = logits.argmax(-1)
    expected = whole[np.arange(4)[:, None], LENGTHS[:, None] + np.arange(6)]
    assert (found == expected).all()


@pytest.mark.parametrize(
    ("share", "draft", "count", "chunk", "mesh"),
    [
        (1.0, "1:3", 11, 3, {}),  # Little is accepted,
        (0.3, "2:4", 1000, 16, dict(data=2, fsdp=2, tensor=2)),  # some; until rows are full,
        (0.1, "1:9", 11, 2, {}),  # most.
    ],
)
def test_what_is_said_is_what_all_loops_say_one_by_one(
    share: float, draft: str, count: int, chunk: int, mesh: dict[str, int]
) -> None:
    expected = one_by_one(share, count)
    own = generator(share, draft, batch_size=8, **mesh)
    assert said(own.generate(PROMPTS, count, chunk=chunk)) == expected
    assert len({tuple(row) for row in expected}) > 3
    full = [len(p) + len(row) == LENGTH + 1 for p, row in zip(PROMPTS, expected, strict=True)]
    assert count < LENGTH or any(full), "a row should fill the model's length"
    assert own.usage.said == sum(map(len, expected))
    assert 0 < own.usage.of_draft["accepted"] < 1, "the test should see both"


def test_a_draft_that_is_always_right_needs_few_passes_and_ends_where_it_says_so() -> None:
    expected = one_by_one(0.0, 12)
    own = generator(0.0, "1:4", batch_size=1)
    assert said(own.generate(PROMPTS, 12)) == expected
    ends = [len(row) - 1 for row in expected if row[-1] == EOS]
    assert any(end % 5 for end in ends), "an end should be in the middle of a draft"
    # A pass for 5 tokens, of which the first is not drafted; rows of 12 take 5, 5 and 2.
    assert any(len(row) == 12 for row in expected)
    passes = sum(-(-len(row) // 5) for row in expected)
    count = sum(map(len, expected))
    assert (own.usage.passes, own.usage.drafted, own.usage.said) == (passes, 4 * passes, count)
    assert own.usage.of_draft == {
        "accepted": (count - passes) / (4 * passes),
        "tokens_per_pass": count / passes,
    }


def test_several_looped_segments_and_kinds_of_loops_draft() -> None:
    loop = (
        ("state", "noise"),
        ("injection", "decay"),
        ("per_loop", "time"),  # Whose first loops are other ones than those of more loops.
        ("gate", "act"),
        ("last_norm", "every_loop"),
    )
    model = small_model("1x3,1x4", loop=loop, max_length=LENGTH)
    config = small_config(mesh__data=1)
    parts = (model, noisy(model), make_mesh(config), config.mesh.rules)
    one, drafting = (
        Generator(*parts, 4, policy=Policy.parse("per_loop", "none", draft))
        for draft in ("none", "2:3")
    )
    assert drafting.generate(PROMPTS, 9) == one.generate(PROMPTS, 9)
    assert drafting.usage.passes and not one.usage.of_draft


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (("per_loop", "none", "1:"), "draft='1:' is none of none, LOOPS, LOOPS:TOKENS"),
        (("per_loop", "none", "1:0"), "each at least 1 (e.g. 1:4)"),
        (("per_loop", "none", "4:2"), "draft=4:2 has to have fewer loops than the 4 that verify"),
        (("per_loop", "none", "1:24"), "draft=1:24: the model reads 24 tokens at most"),
        (("last", "none", "1:2"), "it goes with exit=none and cache=per_loop only"),
        (("per_loop", "kl:1", "1:2"), "it goes with exit=none and cache=per_loop only"),
    ],
)
def test_what_cannot_be_is_refused(policy: tuple[str, str, str], message: str) -> None:
    with pytest.raises(UserError) as error:
        Policy.parse(*policy).check(MODEL.config, None)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_model_without_loops_and_draws_are_refused() -> None:
    with pytest.raises(UserError, match="draft=1:4: plan 2x1 has no looped segment"):
        Policy.parse("per_loop", "none", "1").check(small_model("2x1").config, None)
    with pytest.raises(UserError, match=r"greedy decoding only; the temperature is 0\.5"):
        generator(1.0, "1:3").generate(PROMPTS, 3, sampling=Sampling(0.5))
