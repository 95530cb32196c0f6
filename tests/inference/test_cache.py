"""Decoding with the cache is the full forward pass, token by token."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import init, small_config, small_model, token_logits

from looped_jax.inference.cache import Cache, cache_bytes, decode, prefill
from looped_jax.parallel.mesh import make_mesh, mesh_context

LENGTHS = np.array([3, 7, 1, 5], np.int32)
CAPACITY = 12  # Tokens; the cache begins with the longest prompt, padded to 8.
CASES = [
    (dict(plan="2x3"), None),
    (dict(plan="1x1,1x4,1x1", num_kv_heads=2, bias=True), None),
    (dict(plan="1x1,1x4,1x1", norm="layernorm", mlp="swiglu", tied_output=False), 6),
    (dict(plan="3x2", positions="learned", norm="none", mlp="relu"), 1),
    (dict(plan="2x2", positions="none"), None),
    (dict(plan="2x2", unroll="none"), 3),
]


def tokens(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(3, 16, size=(4, CAPACITY)).astype(np.int32)


def decoded_logits(model: Any, params: Any, loops: int | None) -> list[np.ndarray]:
    """Logits after each prompt and after each further token, until the rows are full."""
    all_tokens = tokens()
    prompts = np.where(np.arange(8) < LENGTHS[:, None], all_tokens[:, :8], 9)  # Rubbish behind.
    read = jax.jit(lambda p, t, n: prefill(model, p, t, n, 9 + CAPACITY, loops))
    step = jax.jit(lambda p, t, c: decode(model, p, t, c, loops))
    logits, cache = read(params, prompts, LENGTHS)
    found = [logits]
    for i in range(CAPACITY - LENGTHS.max()):
        logits, cache = step(params, all_tokens[np.arange(4), LENGTHS + i], cache)
        found.append(logits)
    assert cache.generated == CAPACITY - LENGTHS.max()
    return found


@pytest.mark.parametrize(("fields", "loops"), CASES, ids=str)
def test_decoding_equals_the_full_forward_pass_token_by_token(
    fields: dict, loops: int | None
) -> None:
    model = small_model(**fields)
    params = init(model)
    full = jax.jit(lambda p, t: token_logits(model, p, t, loops))(params, tokens())
    for i, logits in enumerate(decoded_logits(model, params, loops)):
        expected = full[np.arange(4), LENGTHS - 1 + i]
        np.testing.assert_allclose(logits, expected, rtol=2e-4, atol=2e-5)


def test_the_loop_count_at_decoding_matters() -> None:
    model = small_model("1x2")
    params = init(model)
    two, three = (decoded_logits(model, params, loops)[1] for loops in (None, 3))
    assert np.abs(two - three).max() > 1e-3


def test_in_bfloat16_decoding_stays_close_to_the_full_pass() -> None:
    model = small_model("2x2", dtype=jnp.bfloat16)
    params = init(model)
    full = jax.jit(lambda p, t: token_logits(model, p, t))(params, tokens())
    for i, logits in enumerate(decoded_logits(model, params, None)):
        # Eight bits of mantissa, four layers.
        np.testing.assert_allclose(logits, full[np.arange(4), LENGTHS - 1 + i], atol=0.1)


def test_decoding_is_sharded_like_training() -> None:
    model = small_model("2x2", num_kv_heads=2)
    params = init(model)
    alone = decoded_logits(model, params, None)
    config = small_config(mesh__data=2, mesh__fsdp=2, mesh__tensor=2, train__batch_size=4)
    with mesh_context(make_mesh(config), config.mesh.rules, model.config.dtype):
        together = decoded_logits(model, params, None)
        _, cache = jax.jit(lambda p, t, n: prefill(model, p, t, n, 20))(params, tokens(), LENGTHS)
    for a, b in zip(alone, together, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)
    k = cache.segments[0].k  # [L, k, B, G, S, K]: rows over data x fsdp, heads over tensor.
    assert k.sharding.shard_shape(k.shape) == (2, 2, 1, 1, 20, 4)


def test_a_cache_has_an_entry_per_layer_and_loop() -> None:
    model = small_model("1x1,2x3", num_kv_heads=2)
    params = init(model)
    _, cache = prefill(model, params, tokens(), LENGTHS, 20)
    assert [s.k.shape for s in cache.segments] == [(1, 1, 4, 2, 20, 4), (3, 2, 4, 2, 20, 4)]
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(cache.segments))
    assert size == cache_bytes(model.config, 4, 20)
    assert cache_bytes(model.config, 4, 20, loops=6) == size // 7 * 13


def test_a_full_cache_stays_as_large_as_it_is() -> None:
    model = small_model("1x2")
    params = init(model)
    cache = prefill(model, params, tokens()[:, :8], LENGTHS, 9)[1]
    for _ in range(10):
        logits, cache = decode(model, params, jnp.full(4, 5), cache)
    assert isinstance(cache, Cache)
    assert cache.capacity == 9
    assert np.isfinite(logits).all()
