"""Group composition (paper, Theorem 5.1): the product g_1 ∘ g_2 ∘ … ∘ g_n.

`group_s3_n8`: eight elements of the symmetric group on three points. Permutations are written
in one-line notation (`213` sends 1 to 2, 2 to 1, 3 to 3) and compose as functions:
(g ∘ h)(x) = g(h(x)). Groups: s<k> (k <= 6), a<k> (alternating, k <= 6), z<m> (integers mod m under
addition, m <= 1000). Elements are separated by blanks in the text; an element is one token.

Running targets: at g_i, the product g_1 ∘ … ∘ g_i. The last of them is the answer.
"""

import functools
import itertools

import numpy as np

from looped_jax.data.rows import FIRST_FREE_ID
from looped_jax.data.tasks.base import Examples, SyntheticTask, Vocabulary
from looped_jax.errors import UserError


@functools.lru_cache
def group_table(name: str) -> tuple[tuple[str, ...], np.ndarray]:
    """Element names and the table[g, h] = g ∘ h of s<k>, a<k> or z<m>."""
    kind, size = name[:1], int(name[1:]) if name[1:].isdigit() else 0
    if kind == "z" and 2 <= size <= 1000:
        numbers = np.arange(size)
        return tuple(str(i) for i in numbers), (numbers[:, None] + numbers) % size
    if kind in ("s", "a") and 2 + (kind == "a") <= size <= 6:
        permutations = np.array(list(itertools.permutations(range(size))))
        if kind == "a":
            pairs = itertools.combinations(range(size), 2)
            inversions = sum(permutations[:, i] > permutations[:, j] for i, j in pairs)
            permutations = permutations[inversions % 2 == 0]
        radix = size ** np.arange(size)
        code = np.full(size**size, -1)
        code[permutations @ radix] = np.arange(len(permutations))
        composed = permutations[:, permutations]  # [g, h, x] = g(h(x))
        names = tuple("".join(str(x + 1) for x in row) for row in permutations)
        return names, code[composed @ radix]
    raise UserError(f"group {name!r} is not s2..s6, a3..a6 or z2..z1000")


class GroupComposition(SyntheticTask):
    """Product of n uniform elements of a finite group."""

    max_answer = 1
    has_running_targets = True

    def __init__(self, name: str, group: str, length: int):
        if length < 1:
            raise UserError(f"task {name}: n must be at least 1")
        self.name = name
        elements, self.table = group_table(group)
        self.length = length
        self.vocabulary = _SpacedVocabulary(elements)
        self.max_inputs = length
        self.chance = 1 / len(elements)

    def draw(self, rng: np.random.Generator, count: int) -> Examples:
        elements_NS = rng.integers(0, len(self.table), size=(count, self.length))
        product_NS = elements_NS.copy()
        for i in range(1, self.length):
            product_NS[:, i] = self.table[product_NS[:, i - 1], elements_NS[:, i]]
        return Examples(
            FIRST_FREE_ID + elements_NS,
            FIRST_FREE_ID + product_NS[:, -1:],
            running_NS=FIRST_FREE_ID + product_NS,
        )


class _SpacedVocabulary(Vocabulary):
    """Tokens are words: text puts a blank between them."""

    def encode(self, text: str) -> list[int]:
        try:
            return [self.id(word) for word in text.split()]
        except KeyError as error:
            raise UserError(f"{error.args[0]!r} is not in this task's vocabulary") from error

    def decode(self, ids: np.ndarray) -> str:
        return " ".join(self.tokens[i - FIRST_FREE_ID] for i in ids if i >= FIRST_FREE_ID)
