"""Theorem 5.4: m loops of L + 2 layers do what L layers do in m steps of chain of thought.

Input: n tokens and m dummies. Every loop runs the L layers over all positions; then each dummy
looks one position back, decodes greedily what the model says there, and becomes that token. After
the first loop the first dummy is right, after the second the second, … : what is before a position
does not depend on it.

Layer L + 1 looks one position back and compares the logits of all pairs of tokens, one neuron a
pair: how much token v loses by, summed, is exactly zero for the likeliest only. Layer L + 2 turns
that into one token and sets the stream to its embedding.

Where this differs from the printed proof: it counts loops and masks all positions but one, so that
every loop decodes one token. No counter is needed: a token decoded too early is decoded again, and
right, once what is before it is right.

Greedy decoding is a comparison, so no finite weights reproduce it at ties: tokens agree where the
best logit is above the others by more than 1 / sharpness.
"""

import numpy as np

from looped_jax.errors import UserError
from looped_jax.models.transformer import LoopedTransformer
from looped_jax.theory.construction import (
    Construction,
    LayerWeights,
    Slots,
    binary_code,
    code_bits,
    construct,
    ends_of,
    exact_width,
    forward,
    layers_of,
)

SHARPNESS = 2.0**14


def simulate_chain_of_thought(
    model: LoopedTransformer, params: object, m: int, sharpness: float = SHARPNESS
) -> Construction:
    """The looped model for inputs of up to max_length - m tokens and ``m`` dummies.

    At dummy j its logits are highest for the j-th token that ``model`` writes. UserError for a
    model of another class or too many steps.
    """
    config = model.config
    if not 1 <= m < config.max_length:
        raise UserError(f"m={m} must be 1 to {config.max_length - 1}, less than the model's length")
    originals = layers_of(model, params)
    ends = ends_of(model, params)
    count, d = ends.tokens_VD.shape
    length, dtype = config.max_length, str(np.dtype(config.dtype))
    bits = code_bits(length)
    widths = dict(x=d, start=d, before=d, at=bits, previous=bits, given=1, loss=count, token=count)
    minimum = sum(widths.values())
    slots = Slots(**widths, spare=exact_width(minimum, dtype) - minimum)
    heads, size = config.num_heads, max(config.head_dim, bits, -(-d // config.num_heads))
    layers = [_within(layer, slots, size) for layer in originals]
    layers += [
        _look_back(slots, heads, size, ends.output_DV, sharpness),
        _decode(slots, heads, size, ends.tokens_VD),
    ]

    tokens_VD = np.zeros((count + 1, slots.size))
    for name in ("x", "start"):
        tokens_VD[:count, slots[name]] = ends.tokens_VD
    tokens_VD[:count, slots["given"]] = 1
    i = np.arange(length)
    positions_TD = np.zeros((length, slots.size))
    positions_TD[:, slots["at"]] = binary_code(i, bits)
    positions_TD[:, slots["previous"]] = binary_code(np.maximum(i - 1, 0), bits)
    if ends.positions_TD is not None:
        for name in ("x", "start"):
            positions_TD[:, slots[name]] = ends.positions_TD
    read_DV = np.zeros((slots.size, count + 1))
    read_DV[slots["token"], np.arange(count)] = 1
    claimed = {
        "layers x loops": f"L + O(1) = {len(originals)} + O(1) x {m}",
        "embedding": "not stated",
        "FFN": "not stated",
        "heads": "not stated",
    }
    return construct(layers, m, tokens_VD, positions_TD, read_DV, slots, dtype, claimed, length)


def _within(layer: LayerWeights, slots: Slots, size: int) -> LayerWeights:
    """The original layer, on the first d coordinates and in heads of this size."""
    _, heads, own = layer.query_DHK.shape
    x = slots["x"]
    wide = LayerWeights.zeros(slots.size, heads, size, layer.d_ff)
    rescale = np.sqrt(size / own)
    wide.query_DHK[x, :, :own], wide.query_HK[:, :own] = (
        layer.query_DHK * rescale,
        layer.query_HK * rescale,
    )
    wide.key_DHK[x, :, :own], wide.key_HK[:, :own] = layer.key_DHK, layer.key_HK
    wide.value_DHK[x, :, :own], wide.value_HK[:, :own] = layer.value_DHK, layer.value_HK
    wide.output_HKD[:, :own, x], wide.output_D[x] = layer.output_HKD, layer.output_D
    wide.up_DF[x], wide.up_F = layer.up_DF, layer.up_F
    wide.down_FD[:, x], wide.down_D[x] = layer.down_FD, layer.down_D
    return wide


def _look_back(
    slots: Slots, heads: int, size: int, output_DV: np.ndarray, sharpness: float
) -> LayerWeights:
    """Takes over the stream of the position before, in as many heads as it needs, and sums by how
    much every token's logit there is less than others; forgets the stream."""
    layer = LayerWeights.zeros(slots.size, heads, size)
    parts = np.array_split(np.arange(len(slots["x"])), heads)
    for head, part in enumerate(parts):
        layer.lookup(head, slots["previous"], slots["at"], slots["x"][part], slots["before"][part])
    count = output_DV.shape[1]
    v, w = np.nonzero(~np.eye(count, dtype=bool))
    reads, writes = np.zeros((len(v), slots.size)), np.zeros((len(v), slots.size))
    reads[:, slots["before"]] = sharpness * (output_DV[:, w] - output_DV[:, v]).T
    writes[np.arange(len(v)), slots["loss"][v]] = 1
    layer.neurons(reads, np.zeros(len(v)), writes)
    for name in ("x", "before"):
        layer.add(slots[name], slots[name], -1)
    return layer


def _decode(slots: Slots, heads: int, size: int, embedding_VD: np.ndarray) -> LayerWeights:
    """token := the one without a loss, at dummies; the stream := what the input was, and there
    the token's embedding; forgets the losses."""
    layer = LayerWeights.zeros(slots.size, heads, size)
    count = len(embedding_VD)
    v = np.arange(count)
    reads, writes = np.zeros((count, slots.size)), np.zeros((count, slots.size))
    reads[v, slots["loss"]] = -1
    reads[:, slots["given"]] = -2
    writes[v, slots["token"]] = 1
    writes[:, slots["x"]] = embedding_VD
    layer.neurons(reads, np.ones(count), writes)
    layer.add(slots["token"], slots["token"], -1, signed=False)
    layer.add(slots["loss"], slots["loss"], -1, signed=False)
    layer.add(slots["start"], slots["x"], 1)
    return layer


def tokens(construction: Construction, inputs_BN: np.ndarray) -> np.ndarray:
    """The looped model's input: the inputs and its m dummies."""
    config = construction.model.config
    (segment,) = config.plan.segments
    dummy = config.vocab_size - 1
    return np.pad(inputs_BN, ((0, 0), (0, segment.loops)), constant_values=dummy).astype(np.int32)


def answers(construction: Construction, inputs_BN: np.ndarray) -> np.ndarray:
    """The m tokens that the looped model writes after each input."""
    logits_BTV = construction.logits(tokens(construction, inputs_BN))
    return np.argmax(logits_BTV[:, inputs_BN.shape[1] :, :-1], axis=-1)


def trace(construction: Construction, inputs_N: np.ndarray) -> list[list[int]]:
    """The tokens at the dummies after each loop."""
    found = []
    for state_BTD in construction.states(tokens(construction, inputs_N[None])):
        own_MV = state_BTD[0][len(inputs_N) :, construction.slots["token"]]
        found.append([int(token) for token in np.argmax(own_MV, axis=-1)])
    return found


def greedy(
    model: LoopedTransformer, params: object, inputs_BN: np.ndarray, m: int
) -> tuple[np.ndarray, float]:
    """By the definition: m tokens, each the likeliest after all before it; and the least margin by
    which one was the likeliest."""
    batch, n = inputs_BN.shape
    rows = np.zeros((batch, n + m), np.int32)  # What is to come cannot be seen.
    rows[:, :n] = inputs_BN
    margin = np.inf
    for place in range(n, n + m):
        logits_BV = forward(model, params, rows)[:, place - 1].astype(np.float64)
        best_BV = np.sort(logits_BV, axis=-1)
        margin = min(margin, float(np.min(best_BV[:, -1] - best_BV[:, -2])))
        rows[:, place] = np.argmax(logits_BV, axis=-1)
    return rows[:, n:], margin
