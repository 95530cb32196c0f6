import jax
import jax.numpy as jnp
import numpy as np
import pytest

from looped_jax.models.attention import MIN_QUERY_BLOCK, causal_attention, causal_mask


@pytest.mark.parametrize("length", [5, MIN_QUERY_BLOCK, 4 * MIN_QUERY_BLOCK + 3])
@pytest.mark.parametrize("groups", [1, 4])
def test_attention_in_blocks_equals_the_librarys(length: int, groups: int) -> None:
    def random(i: int, heads: int) -> jax.Array:
        return jax.random.normal(jax.random.key(i), (2, length, heads, 8))

    q, k, v = random(0, 4), random(1, groups), random(2, groups)
    segments = jnp.broadcast_to(1 + (jnp.arange(length) >= length // 3), (2, length))

    def ours(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return jnp.sum(jnp.sin(causal_attention(q, k, v, segments)))

    def librarys(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        mask = causal_mask(length, length, segments)
        return jnp.sum(jnp.sin(jax.nn.dot_product_attention(q, k, v, mask=mask)))

    for a, b in zip(
        *(jax.jit(jax.grad(f, (0, 1, 2)))(q, k, v) for f in (ours, librarys)), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_the_mask_is_the_past_of_the_same_segment() -> None:
    mask = causal_mask(4, 4, jnp.array([[1, 1, 2, 2]]))[0, 0]
    expected = [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]
    np.testing.assert_array_equal(mask, np.array(expected, bool))
