"""Self-speculative greedy decoding: few loops draft some tokens, one pass with all loops verifies
them together (speculative decoding of Leviathan et al. 2023, arXiv 2211.17192, with the first loops
of the same model as what drafts, as LayerSkip, arXiv 2404.16710, does with first layers).

A round, for each row:

    t_0 <- the likeliest token after what was read, as the pass before says
    t_1 … t_K <- drafted one by one, each after the one before
    g_0 … g_K <- likeliest tokens after t_0 … t_K, of one pass over these K + 1 tokens
    said: t_0 … t_n,  n the largest with t_i = g_{i-1} for all 0 < i <= n;  the next t_0 is g_n

So all that is said is the likeliest by all loops, as in decoding one by one; what a pass over
several tokens rounds otherwise than a pass over one can only tell where two logits are as good as
equal. One cache serves both: in loop t a drafted token attends to what all loops left in slot t,
and leaves its own there, which the verified token's replaces.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from looped_jax.data.rows import PAD
from looped_jax.inference.cache import Cache, decode, settled, verify
from looped_jax.inference.policy import EXACT, Draft
from looped_jax.inference.sampling import likeliest
from looped_jax.models.transformer import LoopedTransformer


class Said(struct.PyTreeNode):
    """Row b has said ``count_B[b]`` tokens, the first ones in ``token_BC``, in ``passes_B[b]``
    passes with all loops."""

    token_BC: jax.Array
    count_B: jax.Array
    passes_B: jax.Array


def drafted(
    model: LoopedTransformer, draft: Draft, params: Any, cache: Cache, token_B: jax.Array
) -> tuple[jax.Array, Cache]:
    """tokens_BT: the given ones and draft.tokens drafted ones behind them; and the cache, in which
    none of them is seen."""

    def one_more(i: jax.Array, carry: Any) -> Any:
        tokens_BT, cache = carry
        logits_BV, cache = decode(model, params, tokens_BT[:, i], cache, draft.loops, EXACT)
        return tokens_BT.at[:, i + 1].set(likeliest(logits_BV)), cache

    tokens_BT = jnp.zeros((len(token_B), 1 + draft.tokens), jnp.int32).at[:, 0].set(token_B)
    start = (tokens_BT, settled(cache, draft.loops))
    tokens_BT, after = jax.lax.fori_loop(0, draft.tokens, one_more, start)
    return tokens_BT, after.replace(generated=cache.generated)


def speculate(
    model: LoopedTransformer,
    loops: int | None,
    draft: Draft,
    eos: int,
    chunk: int,
    params: Any,
    cache: Cache,
    logits_BV: jax.Array,
    done_B: jax.Array,
    room_B: jax.Array,
) -> tuple[Said, jax.Array, Cache]:
    """Rounds until a row has ``chunk`` more tokens, and up to draft.tokens beyond, or all rows are
    done: by ``eos``, which is said, or because ``room_B`` tokens are. Logits and cache go from call
    to call, as in steps.decode_chunk."""
    width = chunk + draft.tokens

    def going_on(carry: Any) -> jax.Array:
        said, _, _, done_B = carry
        return ~jnp.all(done_B) & (jnp.max(said.count_B) < chunk)

    def one_round(carry: Any) -> Any:
        said, logits_BV, cache, done_B = carry
        tokens_BT, cache = drafted(model, draft, params, cache, likeliest(logits_BV))
        logits_BTV, cache = verify(model, params, tokens_BT, cache, loops)
        right_BT = tokens_BT[:, 1:] == likeliest(logits_BTV)[:, :-1]
        accepted_B = jnp.sum(jnp.cumprod(right_BT, axis=1), axis=1)
        ends_BT = tokens_BT == eos
        end_B = jnp.where(jnp.any(ends_BT, axis=1), jnp.argmax(ends_BT, axis=1), draft.tokens)
        new_B = jnp.minimum(1 + jnp.minimum(accepted_B, end_B), room_B - said.count_B)
        new_B = jnp.where(done_B, 0, new_B)
        # What is behind the new ones here is overwritten, or behind the last one that counts.
        token_BC = jax.vmap(jax.lax.dynamic_update_slice)(
            said.token_BC, tokens_BT, said.count_B[:, None]
        )
        count_B = said.count_B + new_B
        said = Said(token_BC, count_B, said.passes_B + ~done_B)
        last_B = jnp.maximum(new_B - 1, 0)
        logits_BV = jnp.take_along_axis(logits_BTV, last_B[:, None, None], axis=1)[:, 0]
        ended_B = jnp.take_along_axis(ends_BT, last_B[:, None], axis=1)[:, 0]
        cache = cache.replace(generated=cache.generated + new_B)
        return said, logits_BV, cache, done_B | ended_B | (count_B >= room_B)

    zero_B = jnp.zeros(len(done_B), jnp.int32)
    nothing = Said(jnp.full((len(done_B), width), PAD, jnp.int32), zero_B, zero_B)
    start = (nothing, logits_BV, cache, jnp.asarray(done_B))
    said, logits_BV, cache, _ = jax.lax.while_loop(going_on, one_round, start)
    return said, logits_BV, cache
