"""What a Generator compiles beside the prefill: some tokens for every row, and scores of tokens."""

from typing import Any

import jax
import jax.numpy as jnp

from looped_jax.data.rows import PAD
from looped_jax.inference.cache import Cache, decode
from looped_jax.inference.forced import forced, read_at_once
from looped_jax.inference.policy import Policy
from looped_jax.inference.sampling import Sampling, sample
from looped_jax.models.loss import token_scores
from looped_jax.models.transformer import LoopedTransformer, batch_forward


def decode_chunk(
    model: LoopedTransformer,
    loops: int | None,
    policy: Policy,
    eos: int,
    chunk: int,
    sampling: Sampling,
    params: Any,
    cache: Cache,
    logits_BV: jax.Array,
    done_B: jax.Array,
    first_step: jax.Array,
    key_B: jax.Array,
) -> tuple[jax.Array, jax.Array | None, jax.Array, Cache]:
    """Up to ``chunk`` tokens per row, out_BC; less where all rows are done before, by ``eos``.
    Where they differ in them, the loops that each took, depth_BC."""

    def going_on(carry: Any) -> jax.Array:
        i, _, _, done_B, *_ = carry
        return (i < chunk) & ~jnp.all(done_B)

    def one_more(carry: Any) -> Any:
        i, logits_BV, cache, done_B, out_BC, depth_BC = carry
        step_key_B = jax.vmap(jax.random.fold_in, (0, None))(key_B, first_step + i)
        token_B = sample(logits_BV, step_key_B, sampling)
        token_B = jnp.where(done_B, PAD, token_B)
        out_BC = out_BC.at[:, i].set(token_B)
        if depth_BC is not None:
            depth_BC = depth_BC.at[:, i].set(cache.depth_B)
        done_B |= token_B == eos
        logits_BV, cache = decode(model, params, token_B, cache, loops, policy)
        return i + 1, logits_BV, cache, done_B, out_BC, depth_BC

    out_BC = jnp.full((len(done_B), chunk), PAD, jnp.int32)
    depth_BC = None if cache.depth_B is None else jnp.zeros_like(out_BC)
    start = (0, logits_BV, cache, jnp.asarray(done_B), out_BC, depth_BC)
    end = jax.lax.while_loop(going_on, one_more, start)
    _, logits_BV, cache, _, out_BC, depth_BC = end
    return out_BC, depth_BC, logits_BV, cache


def scored_tokens(
    model: LoopedTransformer,
    loops: int | None,
    policy: Policy,
    params: Any,
    tokens_BT: Any,
    targets_BT: Any,
    length_B: Any,
    context_B: Any,
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """log p of each target, whether it is the likeliest token and, where they differ, the loops
    taken to predict it. Of ``length_B`` tokens of a row the first ``context_B`` are the prompt,
    which matters where loops share a cache (inference/forced.py)."""
    if read_at_once(policy):
        batch = {"tokens": tokens_BT, "segment_ids": None, "positions": None}
        output = batch_forward(model, params, batch, loops=loops, exit=policy.exit)
    else:
        place_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
        document_BT = (place_BT < length_B[:, None]).astype(jnp.int32)
        prompt_BT = (place_BT < context_B[:, None]) | (document_BT == 0)
        rows = (tokens_BT, document_BT, place_BT, prompt_BT)
        output = forced(model, params, *rows, loops, policy)
    xent_BT, likeliest_BT = token_scores(model.config, output.x_BTD, output.kernel_VD, targets_BT)
    return -xent_BT, likeliest_BT == targets_BT, output.depth_BT
