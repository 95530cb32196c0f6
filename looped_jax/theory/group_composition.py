"""Theorem 5.1: one layer, looped ceil(log2 n) times, composes n elements of a finite group.

Input (#, g_1, …, g_n). Every loop, position i looks up a_i = g_[2i-n-1]+ and b_i = g_[2i-n]+ (with
g_0 = e) and becomes a_i ∘ b_i: pairs are multiplied from the right, so that after ceil(log2 n)
loops position n holds the whole product.

Residual stream: ±1 codes of the element, of the two that are looked up, of the position and of the
two places to look at: 3 ceil(log2 |G|) + 3 ceil(log2 (n + 1)) coordinates. Two heads look up. The
MLP has a neuron for each pair (x, y), which is 1 for exactly that pair and writes the code of
x ∘ y, and 6 ceil(log2 |G|) that clear what was there. All numbers are small integers, so the result
is exact.
"""

import dataclasses

import numpy as np

from looped_jax.errors import UserError
from looped_jax.theory.construction import (
    Construction,
    LayerWeights,
    Precision,
    Slots,
    binary_code,
    code_bits,
    construct,
    exact_width,
)
from looped_jax.theory.groups import Group

START = 0  # Token of '#'; element g is token g + 1.


def group_composition(group: Group, n: int, dtype: str = "float32") -> Construction:
    """The model; logits at position n are over '#' and the elements. UserError for n < 1."""
    if n < 1:
        raise UserError(f"n={n} must be at least 1")
    m, bits = code_bits(group.order), code_bits(n + 1)
    precision = Precision(integers=2 * m, gaps=bits, size=max(m, bits))
    precision.check(dtype)
    minimum = 3 * (m + bits)
    slots = Slots(
        g=m, a=m, b=m, at=bits, first=bits, second=bits, spare=exact_width(minimum, dtype) - minimum
    )
    d = slots.size
    element_GM = binary_code(np.arange(group.order), m)

    layer = LayerWeights.zeros(d, heads=2, size=max(m, bits))
    layer.lookup(0, slots["first"], slots["at"], slots["g"], slots["a"])
    layer.lookup(1, slots["second"], slots["at"], slots["g"], slots["b"])
    x, y = np.divmod(np.arange(group.order**2), group.order)
    reads, writes = np.zeros((len(x), d)), np.zeros((len(x), d))
    reads[:, slots["a"]], reads[:, slots["b"]] = element_GM[x], element_GM[y]
    writes[:, slots["g"]] = element_GM[group.table[x, y]]
    layer.neurons(reads, np.full(len(x), 1.0 - 2 * m), writes)
    for name in ("g", "a", "b"):
        layer.add(slots[name], slots[name], -1)

    tokens_VD = np.zeros((group.order + 1, d))
    tokens_VD[START, slots["g"]] = element_GM[group.identity]
    tokens_VD[1:, slots["g"]] = element_GM
    i = np.arange(n + 1)
    positions_TD = np.zeros((n + 1, d))
    positions_TD[:, slots["at"]] = binary_code(i, bits)
    positions_TD[:, slots["first"]] = binary_code(np.maximum(2 * i - n - 1, 0), bits)
    positions_TD[:, slots["second"]] = binary_code(np.maximum(2 * i - n, 0), bits)
    output_DV = np.zeros((d, group.order + 1))
    output_DV[slots["g"], 1:] = element_GM.T

    loops = max(1, int(np.ceil(np.log2(n))))
    claimed = {
        "layers x loops": f"1 x {int(np.ceil(np.log2(n)))}",
        "embedding": f"3 (⌈log2 |G|⌉ + ⌈log2 (n+1)⌉) = {minimum}",
        "FFN": f"|G|² + 6 ⌈log2 |G|⌉ = {group.order**2 + 6 * m}",
        "heads": "2",
    }
    built = construct(
        [layer], loops, tokens_VD, positions_TD, output_DV, slots, dtype, claimed, n + 1
    )
    return dataclasses.replace(built, precision=precision)


def tokens(elements_NS: np.ndarray) -> np.ndarray:
    """Token ids of (#, g_1, …, g_S)."""
    start = np.full((len(elements_NS), 1), START)
    return np.concatenate([start, elements_NS + 1], axis=1).astype(np.int32)


def answers(construction: Construction, elements_NS: np.ndarray) -> np.ndarray:
    """What the model says the products are."""
    logits_NV = construction.logits(tokens(elements_NS))[:, -1]
    return np.argmax(logits_NV[:, 1:], axis=-1)


def trace(construction: Construction, group: Group, elements_S: np.ndarray) -> list[list[str]]:
    """The element at every position 0 … n before, and after each loop."""
    m = code_bits(group.order)
    codes_GM = binary_code(np.arange(group.order), m)
    rows = [["e", *(group.names[g] for g in elements_S)]]
    for state_BTD in construction.states(tokens(elements_S[None])):
        code_TM = state_BTD[0][:, construction.slots["g"]]
        rows.append([group.names[int(np.argmax(codes_GM @ code))] for code in code_TM])
    return rows
