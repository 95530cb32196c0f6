"""The key-value cache of a looped model, and the steps that use it.

A token passes D = sum of k L layers, and in each it leaves a key and a value: the same layer in
another loop has others. So the cache has D entries per token, though the model has only the
parameters of k layers; unless loops share entries (inference/policy.py): then a segment has k C.
Tokens that are not in all loops (config.loop.routing) have entries for all; which are seen is
marked.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from looped_jax.inference.policy import EXACT, Policy
from looped_jax.models.config import ModelConfig
from looped_jax.models.layers import KeyValues
from looped_jax.models.transformer import Inference, LoopedTransformer, Output, forward, logits

# Logical axes of a segment's cache [C, k, B, G, S, K], and of its marks [L, B, S].
_AXES = (None, "layers", "batch", "activation_heads", "cache", "head_dim")
_MARKS = (None, "batch", "cache")


def _by_place(change: Callable[..., jax.Array], *caches: KeyValues) -> KeyValues:
    """``change`` (logical axes, arrays) of keys, of values, and of marks where there are any."""
    first, *_ = caches
    used = None
    if first.used is not None:
        used = change(_MARKS, *(cache.used for cache in caches))
    of_keys = change(_AXES, *(cache.k for cache in caches))
    return KeyValues(of_keys, change(_AXES, *(cache.v for cache in caches)), used)


class Cache(struct.PyTreeNode):
    """Keys and values of all tokens so far.

    Row b's prompt is in its first ``prompt_B[b]`` places; what was generated since begins behind
    the longest prompt, in the same place for all rows, so that writing is one contiguous update
    and not a scatter. The places between are never seen. The last token's keys and values are
    still ``pending``: they are written before the next step reads the cache, and not after this
    one has, or XLA would copy the whole cache in every step to keep the two apart.

    With drafts, of which rows accept different numbers, ``generated`` and ``place`` are of each
    row, and those of all tokens that were verified together are pending: what of them is not
    accepted is not seen, and the next tokens take its places.
    """

    segments: tuple[KeyValues, ...]
    pending: tuple[KeyValues, ...]
    place: jax.Array  # int32 [] or [B], where the first pending token belongs.
    prompt_B: jax.Array
    generated: jax.Array  # int32 [] or [B], tokens per row.
    depth_B: jax.Array | None  # int32, as Output's: the loops that each row's last token took.
    prompt_width: int = struct.field(pytree_node=False)

    @property
    def capacity(self) -> int:
        """S, places of a row."""
        return self.segments[0].k.shape[-2]


def cache_bytes(
    config: ModelConfig,
    rows: int,
    capacity: int,
    loops: int | None = None,
    policy: Policy = EXACT,
) -> int:
    """Memory of a cache: D x 2 x rows x capacity x G x K values of the compute type, D the layers,
    each as often as loops have entries of their own; and with config.loop.routing a byte for each
    loop and place."""
    segments = config.plan.with_loops(loops).segments
    entries = sum(segment.layers * policy.cache.slots(segment.loops) for segment in segments)
    numbers = entries * 2 * rows * capacity * config.num_kv_heads * config.head_dim
    marks = 0
    if "routing" in dict(config.loop):
        marks = sum(s.loops for s in segments if s.trained_loops > 1) * rows * capacity
    return numbers * jnp.dtype(config.dtype).itemsize + marks


def prefill(
    model: LoopedTransformer,
    params: Any,
    tokens_BT: jax.Array,
    length_B: jax.Array,
    capacity: int,
    loops: int | None = None,
    policy: Policy = EXACT,
) -> tuple[jax.Array, Cache]:
    """Reads prompts; returns logits_BV of what follows each, and the cache.

    Args:
      tokens_BT: prompts, padded on the right with anything.
      length_B: int32, tokens of each prompt, at least 1.
      capacity: S > T, places of the cache: T + 1, and one per token to be generated; with a draft
        as many more as it has tokens.
      loops: as in LoopedTransformer.
      policy: static. All tokens of a prompt go through all loops, and see each other there.
    """
    inference = Inference(length_B - 1)
    exit = policy.exit
    output = forward(model, params, tokens_BT, loops=loops, exit=exit, inference=inference)
    logits_BV, depth_B, kept = _next(model, output, policy, read_all=True)
    width = tokens_BT.shape[1]

    def grow(axes: Any, array: jax.Array) -> jax.Array:
        more = [(0, capacity - width if axis == "cache" else 0) for axis in axes]
        return nn.with_logical_constraint(jnp.pad(array, more), axes)

    segments = tuple(_by_place(grow, own) for own in kept)
    count = jnp.zeros_like(length_B) if policy.draft else jnp.zeros((), jnp.int32)
    pending = _nothing(segments, 1 + policy.draft.tokens if policy.draft else 1)
    return logits_BV, Cache(segments, pending, count + width, length_B, count, depth_B, width)


def decode(
    model: LoopedTransformer,
    params: Any,
    token_B: jax.Array,
    cache: Cache,
    loops: int | None = None,
    policy: Policy = EXACT,
) -> tuple[jax.Array, Cache]:
    """Reads one more token per row; returns logits_BV of what follows, and the cache with it.

    A full cache stays as it is: its last place is overwritten.
    """
    output, cache = _read(model, params, token_B[:, None], cache, loops, policy)
    logits_BV, depth_B, kept = _next(model, output, policy, read_all=False)
    after = cache.generated + 1
    return logits_BV, cache.replace(pending=kept, generated=after, depth_B=depth_B)


def verify(
    model: LoopedTransformer,
    params: Any,
    tokens_BT: jax.Array,
    cache: Cache,
    loops: int | None = None,
) -> tuple[jax.Array, Cache]:
    """Reads T more tokens per row in one pass; returns logits_BTV of what follows each, and the
    cache, in which all are pending and none is generated yet: the caller adds to
    ``generated`` how many of each row are to stay."""
    output, cache = _read(model, params, tokens_BT, cache, loops, EXACT)
    pending = tuple(segment.kept for segment in output.segments if segment.kept is not None)
    return logits(model.config, output), cache.replace(pending=pending)


def settled(cache: Cache, loops: int) -> Cache:
    """The cache with what was pending written, ready for ``decode`` with ``loops`` loops, fewer
    than it has: in a ``while`` what is pending keeps its shape."""
    first = jax.tree.map(lambda array: array[:loops], cache.segments)
    place = jnp.full_like(cache.place, cache.prompt_width)
    return cache.replace(segments=_written(cache), pending=_nothing(first, 1), place=place)


def _nothing(segments: tuple[KeyValues, ...], tokens: int) -> tuple[KeyValues, ...]:
    """What is pending where nothing is. It is written too, to the first place behind the prompts,
    which is never seen (and to others that are not yet)."""

    def none(axes: Any, array: jax.Array) -> jax.Array:
        return jnp.zeros_like(jax.lax.slice_in_dim(array, 0, tokens, axis=axes.index("cache")))

    return tuple(_by_place(none, own) for own in segments)


def _written(cache: Cache) -> tuple[KeyValues, ...]:
    """The segments with what is pending, of all their slots or the first ones."""

    def write(axes: Any, old: jax.Array, new: jax.Array) -> jax.Array:
        place, row = axes.index("cache"), axes.index("batch")
        if cache.place.ndim == 0:
            return jax.lax.dynamic_update_slice_in_dim(old, new, cache.place, axis=place)
        one = functools.partial(jax.lax.dynamic_update_slice_in_dim, axis=place - 1)
        # A draft of one layer has no scans in which a layer takes its part: without the barrier XLA
        # copies the whole cache for each token, and updates it anew in each product that reads it.
        written = jax.vmap(one, (row, row, 0), row)(old, new, cache.place)
        return jax.lax.optimization_barrier(written)

    both = zip(cache.segments, cache.pending, strict=True)
    return tuple(_by_place(write, *pair) for pair in both)


def _read(
    model: LoopedTransformer,
    params: Any,
    tokens_BT: jax.Array,
    cache: Cache,
    loops: int | None,
    policy: Policy,
) -> tuple[Output, Cache]:
    """A pass over more tokens, and the cache in which what was pending before is written. Where
    the new ones belong is said in it already."""
    segments = _written(cache)
    place_S, width = jnp.arange(cache.capacity), cache.prompt_width
    # [S] or [B, S].
    own_BS = (place_S > width) & (place_S <= width + cache.generated[..., None])
    seen_BS = (place_S < cache.prompt_B[:, None]) | own_BS
    first_B = cache.prompt_B + cache.generated
    output = forward(
        model,
        params,
        tokens_BT,
        positions_BT=first_B[:, None] + jnp.arange(tokens_BT.shape[1]),
        loops=loops,
        exit=policy.exit,
        inference=Inference(None, segments, seen_BS),
    )
    return output, cache.replace(segments=segments, place=width + 1 + cache.generated)


def _next(
    model: LoopedTransformer, output: Output, policy: Policy, read_all: bool
) -> tuple[jax.Array, jax.Array | None, tuple[KeyValues, ...]]:
    """logits_BV of what follows, the loops that it took, and the keys and values of each segment
    that its cache keeps; ``read_all``: of tokens that went through all loops."""
    depth_B = None if output.depth_BT is None else output.depth_BT[:, 0]
    all_ran = read_all or policy.exit is None
    kept = tuple(
        policy.cache.reduce(
            segment.kept, None if all_ran or segment.depth_BT is None else segment.depth_BT[:, 0]
        )
        for segment in output.segments
        if segment.kept is not None
    )
    return logits(model.config, output)[:, 0], depth_B, kept
