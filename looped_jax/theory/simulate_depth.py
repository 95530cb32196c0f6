"""Theorem 5.2: L layers of which R are distinct, as one layer looped L times.

The looped model reads '#' and then the input. Its residual stream is the original's (d coordinates)
and d + R + 2 in all:

- idle_r, for each distinct layer: 0 when it is that layer's turn, 1 otherwise;
- a counter of the loops made;
- 1 at every token but '#'.

Attention has the heads of all R layers, R·H. A head whose layer is idle scores B higher at '#',
where every value is zero; one whose layer is active scores B lower there, and so sees what it saw
in the original. The MLP has the neurons of all R layers; those of idle ones are pushed below zero
by B · idle. O(L) more count the loops and set idle.

Where this differs from a gate on active layers: B · (1 - active) would add B to an active layer's
sums and take it away again, which costs float32 the last digits of the sum; B · idle adds exactly
nothing, so any B above the largest sum does, up to the type's range.
The output biases, which must not reach '#' or idle layers, travel with the values (the weights of
an active head over the tokens add up to one) and through one more neuron per layer.
"""

import numpy as np

from looped_jax.errors import UserError
from looped_jax.models.transformer import LoopedTransformer
from looped_jax.theory.construction import (
    Construction,
    LayerWeights,
    Slots,
    construct,
    ends_of,
    exact_width,
    layers_of,
)

B = 2.0**30


def simulate_depth(model: LoopedTransformer, params: object, b: float = B) -> Construction:
    """One layer looped as often as ``model`` has layers, which are those of its plan written out.

    Its input is '#' (the token after the model's own) and the model's input; its logits there are
    those of the model, and '#' is never the likeliest. UserError for a model of another class.
    """
    config = model.config
    ends = ends_of(model, params)
    return loop_layers(
        layers_of(model, params),
        ends.tokens_VD,
        ends.positions_TD,
        ends.output_DV,
        config.max_length,
        str(np.dtype(config.dtype)),
        b,
    )


def loop_layers(
    layers: list[LayerWeights],
    tokens_VD: np.ndarray,
    positions_TD: np.ndarray | None,
    output_DV: np.ndarray,
    max_length: int,
    dtype: str,
    b: float = B,
) -> Construction:
    """simulate_depth for layers given as such; embeddings are what the stream begins with."""
    if not layers:
        raise UserError("a model without layers cannot be looped")
    distinct, schedule = _distinct(layers)
    depth, kinds = len(layers), len(distinct)
    d, heads, size = layers[0].query_DHK.shape
    minimum = d + kinds + 2
    spare = exact_width(minimum, dtype) - minimum
    slots = Slots(x=d, idle=kinds, counter=1, token=1, spare=spare)
    x, idle, counter, token = slots["x"], slots["idle"], slots["counter"], slots["token"]
    width = slots.size

    one = LayerWeights.zeros(width, kinds * heads, size + 1)
    rescale = np.sqrt((size + 1) / size)  # The model divides scores by the head's size.
    for r, layer in enumerate(distinct):
        own = slice(r * heads, (r + 1) * heads)
        one.query_DHK[x, own, :size] = layer.query_DHK * rescale
        one.query_HK[own, :size] = layer.query_HK * rescale
        one.key_DHK[x, own, :size] = layer.key_DHK
        one.key_HK[own, :size] = layer.key_HK
        one.value_DHK[x, own, :size] = layer.value_DHK
        one.output_HKD[own, :size, x] = layer.output_HKD
        # The score of '#': + b if idle, - b if active; of any other token nothing.
        one.query_DHK[idle[r], own, size] = 2 * b * np.sqrt(size + 1)
        one.query_HK[own, size] = -b * np.sqrt(size + 1)
        one.key_DHK[token, own, size] = -1
        one.key_HK[own, size] = 1
        # Biases, where there is a token to be seen.
        one.value_DHK[token, own, size] = 1
        of_heads_HD = np.einsum("hk,hkd->hd", layer.value_HK, layer.output_HKD)
        of_heads_HD[0] += layer.output_D
        one.output_HKD[own, size, x] = of_heads_HD

        reads_FD = np.zeros((layer.d_ff, width))
        reads_FD[:, x] = layer.up_DF.T
        reads_FD[:, token] = layer.up_F[:, None]
        reads_FD[:, idle[r]] = -b
        writes_FD = np.zeros((layer.d_ff, width))
        writes_FD[:, x] = layer.down_FD
        one.neurons(reads_FD, np.zeros(layer.d_ff), writes_FD)
        if layer.down_D.any():
            reads_1D, writes_1D = np.zeros((1, width)), np.zeros((1, width))
            reads_1D[0, token], reads_1D[0, idle[r]] = 1, -2
            writes_1D[0, x] = layer.down_D
            one.neurons(reads_1D, np.zeros(1), writes_1D)

    _count(one, counter, idle, schedule)
    claimed = {
        "layers x loops": f"1 x {depth}",
        "embedding": f"d + R + 2 = {minimum}",
        "FFN": f"R d_ff + O(L) = {kinds * layers[0].d_ff} + O({depth})",
        "heads": f"R H = {kinds * heads}",
    }
    count, length = len(tokens_VD), max_length + 1
    embedding_VD = np.zeros((count + 1, width))
    embedding_VD[:count, x] = tokens_VD
    embedding_VD[:count, token] = 1
    embedding_VD[:, idle] = 1
    embedding_VD[:, idle[schedule[0]]] = 0
    looped_positions = None
    if positions_TD is not None:
        looped_positions = np.zeros((length, width))
        looped_positions[1:, x] = positions_TD
    looped_output = np.zeros((width, count + 1))
    looped_output[x, :count] = output_DV
    looped_output[token, count] = -(2.0**30)
    return construct(
        [one], depth, embedding_VD, looped_positions, looped_output, slots, dtype, claimed, length
    )


def _count(one: LayerWeights, counter: np.ndarray, idle: np.ndarray, schedule: list[int]) -> None:
    """Neurons that add one to the counter t and set the flags for the next loop's layer.

    [t = l] is relu(t - l + 1) - 2 relu(t - l) + relu(t - l - 1), so L + 2 neurons make them all.
    """
    depth, width = len(schedule), len(one.down_D)
    one.down_D[counter] = 1
    reads, writes = np.zeros((depth + 2, width)), np.zeros((depth + 2, width))
    reads[:, counter] = 1
    hinges = np.arange(-1, depth + 1)
    for step, kind in enumerate(schedule):
        following = schedule[(step + 1) % depth]
        if following == kind:
            continue
        for offset, factor in ((0, 1), (1, -2), (2, 1)):
            writes[step + offset, idle[kind]] += factor
            writes[step + offset, idle[following]] -= factor
    one.neurons(reads, -hinges.astype(float), writes)


def _distinct(layers: list[LayerWeights]) -> tuple[list[LayerWeights], list[int]]:
    """Layers that differ, and for every layer which of them it is."""
    found: list[LayerWeights] = []
    schedule = []
    for layer in layers:
        for number, other in enumerate(found):
            if layer is other or all(
                np.array_equal(a, b)
                for a, b in zip(vars(layer).values(), vars(other).values(), strict=True)
            ):
                schedule.append(number)
                break
        else:
            schedule.append(len(found))
            found.append(layer)
    return found, schedule


def tokens(construction: Construction, tokens_BT: np.ndarray) -> np.ndarray:
    """The looped model's input: '#' before each row."""
    start = construction.model.config.vocab_size - 1
    return np.pad(tokens_BT, ((0, 0), (1, 0)), constant_values=start).astype(np.int32)


def logits(construction: Construction, tokens_BT: np.ndarray) -> np.ndarray:
    """logits_BTV of the original, as the looped model computes them."""
    return construction.logits(tokens(construction, tokens_BT))[:, 1:, :-1]
