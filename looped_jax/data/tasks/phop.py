"""p-hop induction (paper, section 2.2; Sanford et al. 2024).

find_1(v, i) = max({0} ∪ {j <= i : v_{j-1} = v_i}), find_p(v, i) = find_1(v, find_{p-1}(v, i)),
and the answer is v at find_p(v, n): from the last token, p times over, go to the token after
the latest earlier occurrence of the current one. Alphabet of four.

Instances always have p hops. The chain is drawn first: its tokens c_0 … c_p (neighbours
differ, or the hop would stay where it is) and its positions n = i_0 > i_1 > … > i_p. Hop m
needs v at i_m - 1 to be c_{m-1}, and no c_{m-1} from i_m up to i_{m-1} - 1; every other
position is uniform over the characters which respect that.
"""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from looped_jax.data.rows import FIRST_FREE_ID
from looped_jax.data.tasks.base import Examples, SyntheticTask, Vocabulary
from looped_jax.errors import UserError

T = TypeVar("T")

ALPHABET = "abcd"


class PHop(SyntheticTask):
    """p hops over n characters."""

    vocabulary = Vocabulary(tuple(ALPHABET))
    max_answer = 1
    chance = 1 / len(ALPHABET)

    def __init__(self, name: str, hops: int, length: int):
        if hops < 1 or length < 2 * hops + 1:
            raise UserError(f"task {name}: p hops need p >= 1 and n >= 2 p + 1 characters")
        self.name = name
        self.hops = hops
        self.length = length
        self.max_inputs = length

    def draw(self, rng: np.random.Generator, count: int) -> Examples:
        p, n, letters = self.hops, self.length, len(ALPHABET)
        # Chain tokens: each differs from the one before by a non-zero step.
        steps = rng.integers(1, letters, size=(count, p + 1))
        steps[:, 0] = rng.integers(0, letters, size=count)
        chain = np.cumsum(steps, axis=1) % letters  # chain[:, m] = c_m

        # 0-based positions: p of them, at least two apart, in 1 .. n-2.
        slots = np.argpartition(rng.random((count, n - p - 1)), p - 1, axis=1)[:, :p]
        position = np.empty((count, p + 1), dtype=np.int64)
        position[:, 0] = n - 1
        position[:, 1:] = (np.sort(slots, axis=1) + 1 + np.arange(p))[:, ::-1]

        # The stretch of hop m is i_m .. i_{m-1} - 1: m chain positions lie after each of it.
        rows = np.arange(count)[:, None]
        is_chain = np.zeros((count, n), dtype=np.int64)
        is_chain[rows, position] = 1
        after = np.cumsum(is_chain[:, ::-1], axis=1)[:, ::-1] - is_chain
        covered = np.cumsum(is_chain, axis=1) > 0  # From i_p on.
        forbidden = np.take_along_axis(chain, np.clip(after - 1, 0, p), axis=1)
        filler = (forbidden + rng.integers(1, letters, size=(count, n))) % letters
        free = rng.integers(0, letters, size=(count, n))
        sequence = np.where(covered, filler, free)
        sequence[rows, position] = chain
        sequence[rows, position[:, 1:] - 1] = chain[:, :-1]
        return Examples(FIRST_FREE_ID + sequence, FIRST_FREE_ID + chain[:, -1:])


def hop(sequence: Sequence[T], hops: int) -> T | None:
    """hop_p(v) by its definition, slowly; None where a hop leads nowhere (⊥)."""
    i = len(sequence)  # 1-based, as in the paper.
    for _ in range(hops):
        if i == 0:
            return None
        earlier = [j for j in range(2, i + 1) if sequence[j - 2] == sequence[i - 1]]
        i = max(earlier, default=0)
    return sequence[i - 1] if i else None
