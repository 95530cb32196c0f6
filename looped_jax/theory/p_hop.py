"""Corollary 5.3: p-hop induction by one layer looped floor(log2 p) + 2 times.

A model of floor(log2 p) + 2 layers, at most three of them distinct, made into one looped layer by
Theorem 5.2. Input: '$' at position 0, which stands for "no hop", and the sequence.

The first layer finds, at position i, the latest m < i with v_m = v_i and keeps the code of m + 1:
find_1. From there F(i) = find_q(i) and G(i) = find_(q+1)(i) are held for q = the leading binary
digits of p: none at first (F(i) = i). A digit 0 makes F∘F and F∘G of them, a digit 1 F∘G and G∘G,
each by looking up at the place that F or G names; the token there comes along with F.

Where this differs from the printed proof: layers that copy the previous token and then look for it
take one more layer than the corollary has, unless p is a power of two. Here one layer does both,
because m itself is what it looks for. For that a position must not find itself, however late it
is: one coordinate per position, so the width is n + O(log n) and not O(log n).
"""

import numpy as np

from looped_jax.errors import UserError
from looped_jax.theory import simulate_depth
from looped_jax.theory.construction import (
    GAP,
    Construction,
    LayerWeights,
    Precision,
    Slots,
    binary_code,
    code_bits,
)


def p_hop(p: int, n: int, alphabet: int, dtype: str = "float32") -> Construction:
    """The model for sequences of ``n`` characters 0 … alphabet - 1; its logits at the last position
    are over them, then '$' for ⊥. UserError if p, n or the alphabet is out of range."""
    for name, value in (("p", p), ("n", n), ("alphabet", alphabet)):
        if value < 1:
            raise UserError(f"{name}={value} must be at least 1")
    bits, characters = code_bits(n + 2), alphabet + 1
    slots = Slots(
        self_=n + 1,
        recent=1,
        at=bits,
        next=bits,
        own=characters,
        F=bits,
        G=bits,
        T=characters,
        new_F=bits,
        new_G=bits,
        new_T=characters,
    )
    size = max(alphabet + n + 2, bits + characters)
    precision = Precision(
        integers=2 * n + 1, gaps=3 * (n + 1), size=size, largest=2 * simulate_depth.B
    )
    precision.check(dtype)
    digits = [int(digit) for digit in f"{p:b}"]
    hops = {digit: _hop_layer(slots, digit, size) for digit in set(digits)}
    layers = [_find_layer(slots, n, alphabet, size), *(hops[digit] for digit in digits)]

    i = np.arange(n + 1)
    positions_TD = np.zeros((n + 1, slots.size))
    positions_TD[i, slots["self_"]] = 1
    positions_TD[:, slots["recent"][0]] = np.where(i == 0, n + 1, i)
    positions_TD[:, slots["at"]] = binary_code(i, bits)
    positions_TD[:, slots["next"]] = binary_code(np.where(i == 0, 0, i + 1), bits)
    positions_TD[:, slots["F"]] = binary_code(i, bits)
    tokens_VD = np.zeros((characters, slots.size))
    for name in ("own", "T"):
        tokens_VD[np.arange(characters), slots[name]] = 1
    output_DV = np.zeros((slots.size, characters))
    output_DV[slots["T"], np.arange(characters)] = 1
    looped = simulate_depth.loop_layers(layers, tokens_VD, positions_TD, output_DV, n + 1, dtype)
    claimed = {
        **looped.claimed,
        "layers x loops": f"1 x (⌊log2 p⌋ + 2) = 1 x {p.bit_length() + 1}",
        "embedding": f"O(log n); here n + O(log n), {looped.claimed['embedding']}",
    }
    return Construction(looped.model, looped.params, slots, claimed, looped.used, precision)


def _find_layer(slots: Slots, n: int, alphabet: int, size: int) -> LayerWeights:
    """G := the place after the latest earlier occurrence of the own character, or '$'.

    The score of m at i, in gaps: 2 (n + 1) for the same character, - 3 (n + 1) for m = i, + m for
    being late; '$' has n + 1, more than any other character and less than the same one.
    """
    layer = LayerWeights.zeros(slots.size, 2, size)
    unit = GAP * np.sqrt(size)
    same, own_place = np.arange(alphabet), alphabet + np.arange(n + 1)
    characters = slots["own"][:alphabet]  # '$' is like nothing.
    layer.query_DHK[characters, 0, same] = 2 * (n + 1) * unit
    layer.key_DHK[characters, 0, same] = 1
    layer.query_DHK[slots["self_"], 0, own_place] = -3 * (n + 1) * unit
    layer.key_DHK[slots["self_"], 0, own_place] = 1
    layer.query_HK[0, alphabet + n + 1] = unit
    layer.key_DHK[slots["recent"], 0, alphabet + n + 1] = 1
    bits = np.arange(len(slots["at"]))
    layer.value_DHK[slots["next"], 0, bits] = 1
    layer.output_HKD[0, bits, slots["new_G"]] = 1
    layer.move(slots["new_G"], slots["G"])
    return layer


def _hop_layer(slots: Slots, digit: int, size: int) -> LayerWeights:
    """(F, G) := (F∘F, F∘G) for the digit 0, (F∘G, G∘G) for 1; T := the character at F."""
    layer = LayerWeights.zeros(slots.size, 2, size)
    chosen = slots["G" if digit else "F"]
    with_character = np.concatenate([slots["F"], slots["T"]])
    new = np.concatenate([slots["new_F"], slots["new_T"]])
    layer.lookup(0, chosen, slots["at"], with_character, new)
    layer.lookup(1, slots["G"], slots["at"], chosen, slots["new_G"])
    layer.move(slots["new_F"], slots["F"])
    layer.move(slots["new_G"], slots["G"])
    layer.move(slots["new_T"], slots["T"], signed=False)
    return layer


def tokens(construction: Construction, sequences_BN: np.ndarray) -> np.ndarray:
    """'$' and the sequence, and '#' before them."""
    dollar = construction.model.config.vocab_size - 2
    rows = np.pad(sequences_BN, ((0, 0), (1, 0)), constant_values=dollar)
    return simulate_depth.tokens(construction, rows)


def answers(construction: Construction, sequences_BN: np.ndarray) -> list[int | None]:
    """What the model says; None for ⊥."""
    alphabet = construction.model.config.vocab_size - 2
    logits_BV = construction.logits(tokens(construction, sequences_BN))[:, -1]
    return [None if a == alphabet else int(a) for a in np.argmax(logits_BV, axis=-1)]


def trace(construction: Construction, sequence_N: np.ndarray) -> list[dict[str, list[int]]]:
    """For every loop, where F and G point from each position 1 … n; 0 is '$'."""
    n = len(sequence_N)
    codes_PB = binary_code(np.arange(n + 2), len(construction.slots["F"]))
    found = []
    for state_BTD in construction.states(tokens(construction, sequence_N[None])):
        own_TD = state_BTD[0][2:]  # After '#' and '$'.
        found.append(
            {
                name: [
                    int(np.argmax(codes_PB @ own_TD[t, construction.slots[name]])) for t in range(n)
                ]
                for name in ("F", "G")
            }
        )
    return found
