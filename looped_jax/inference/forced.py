"""Whole rows as decoding reads them, with what they say given: a prompt in one pass, then token by
token, each attending to what the cache keeps of those before it.

Where loops share keys and values (inference/policy.py) this is what scores and held-out rows have
to be read by: in one pass over a row every token sees all loops of all others, and there is no
cache. It makes a step for each place behind the prompts, one after the other.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from looped_jax.inference.policy import Policy
from looped_jax.models.layers import KeyValues
from looped_jax.models.transformer import Inference, LoopedTransformer, Output, forward


def read_at_once(policy: Policy) -> bool:
    """Whether one pass over a row says of each token what decoding would, but for exits, of which
    docs/exits.md tells."""
    return policy.cache.name == "per_loop"


def prompts_of(begins_BT: jax.Array, segment_ids_BT: jax.Array) -> jax.Array:
    """prompt_BT: the places of each document up to and with the first at which ``begins_BT``, whose
    next token is the first that is decoded; and padding (document 0)."""
    count_BT = jnp.cumsum(begins_BT, axis=1) - begins_BT
    first_BT = jnp.diff(segment_ids_BT, axis=1, prepend=-1) != 0
    # Of the row in front of the document; counts only rise.
    base_BT = jax.lax.cummax(jnp.where(first_BT, count_BT, 0), axis=1)
    return (count_BT == base_BT) | (segment_ids_BT == 0)


def forced(
    model: LoopedTransformer,
    params: Any,
    tokens_BT: jax.Array,
    segment_ids_BT: jax.Array,
    positions_BT: jax.Array,
    prompt_BT: jax.Array,
    loops: int | None,
    policy: Policy,
) -> Output:
    """As a pass over the rows (models/transformer.py), where places that are not ``prompt_BT`` are
    decoded. ``segment_ids_BT``: as there; a token sees its own document's tokens only. Each
    document begins with a prompt, of one token at least.
    """
    whole = forward(
        *(model, params, tokens_BT, segment_ids_BT, positions_BT),
        loops=loops,
        exit=policy.exit,
        inference=Inference(None),
    )
    caches = tuple(
        policy.cache.reduce(segment.kept, None)
        for segment in whole.segments
        if segment.kept is not None
    )
    # In rolled scans XLA takes a layer's part of the cache by a plain copy (docs/performance.md).
    rolled = LoopedTransformer(dataclasses.replace(model.config, unroll="none"))
    place_T = jnp.arange(tokens_BT.shape[1])

    def column(array_BT: jax.Array, place: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice_in_dim(array_BT, place, 1, axis=1)

    def written(old: jax.Array, new: jax.Array, place: jax.Array, axis: int) -> jax.Array:
        """``old`` with the place of each row that is no prompt's from ``new``."""
        before = jax.lax.dynamic_slice_in_dim(old, place, 1, axis=axis)
        decoded_B = ~column(prompt_BT, place)[:, 0]
        row = 1 if axis == 1 else 3  # Behind the rows: of x_BTD, and of [C, k, B, G, T, K].
        taken = decoded_B.reshape(-1, *(1,) * (old.ndim - row))
        one = jnp.where(taken, new.astype(old.dtype), before)
        return jax.lax.dynamic_update_slice_in_dim(old, one, place, axis=axis)

    def step(place: jax.Array, carry: Any) -> Any:
        x_BTD, depth_BT, caches = carry
        segment_B1 = column(segment_ids_BT, place)
        seen_BT = (place_T < place) & (segment_ids_BT == segment_B1)
        output = forward(
            *(rolled, params, column(tokens_BT, place), None, column(positions_BT, place)),
            loops=loops,
            exit=policy.exit,
            inference=Inference(None, caches, seen_BT),
        )
        kept = [
            policy.cache.reduce(
                segment.kept, None if segment.depth_BT is None else segment.depth_BT[:, 0]
            )
            for segment in output.segments
            if segment.kept is not None
        ]
        caches = tuple(
            KeyValues(written(old.k, new.k, place, 4), written(old.v, new.v, place, 4))
            for old, new in zip(caches, kept, strict=True)
        )
        x_BTD = written(x_BTD, output.x_BTD, place, 1)
        if depth_BT is not None and output.depth_BT is not None:
            depth_BT = written(depth_BT, output.depth_BT, place, 1)
        return x_BTD, depth_BT, caches

    decoded_T = jnp.any(~prompt_BT, axis=0)
    first = jnp.argmax(decoded_T)
    behind = jnp.where(jnp.any(decoded_T), len(place_T) - jnp.argmax(decoded_T[::-1]), first)
    x_BTD, depth_BT, _ = jax.lax.fori_loop(
        first, behind, step, (whole.x_BTD, whole.depth_BT, caches)
    )
    return whole.replace(x_BTD=x_BTD, segments=(), depth_BT=depth_BT)
