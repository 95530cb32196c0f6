"""n-ary addition (paper, section 2.1): `315 + 120 + 045 + 824 =` -> `1304`.

Operands have three digits, zero-padded, each uniform in 0..999. The training mixture draws n
uniformly from {2, 4, 8, 16, 32}; `addition_n<N>` fixes n. A digit is a token, and so are
` + ` and ` =`. The answer has no leading zeros and ends with EOS, since its length varies.
"""

import numpy as np

from looped_jax.data.rows import EOS, PAD
from looped_jax.data.tasks.base import Examples, SyntheticTask, Vocabulary, left_align

MIXTURE = (2, 4, 8, 16, 32)


class Addition(SyntheticTask):
    """Sum of n three-digit numbers, n drawn uniformly from ``sizes``."""

    vocabulary = Vocabulary((*"0123456789", " + ", " ="))
    chance = 1 / 1000  # The likeliest sum of two operands; of more it is less likely.

    def __init__(self, name: str, sizes: tuple[int, ...]):
        self.name = name
        self.sizes = sizes
        self.max_inputs = 4 * max(sizes)
        self.max_answer = len(str(999 * max(sizes))) + 1

    def draw(self, rng: np.random.Generator, count: int) -> Examples:
        widest = max(self.sizes)
        size_N1 = rng.choice(self.sizes, size=(count, 1))
        operand_NS = rng.integers(0, 1000, size=(count, widest))
        present_NS = np.arange(widest) < size_N1
        total_N = (operand_NS * present_NS).sum(axis=1)

        zero = self.vocabulary.id("0")
        separator_NS = np.where(
            np.arange(widest) < size_N1 - 1, self.vocabulary.id(" + "), self.vocabulary.id(" =")
        )
        columns = [zero + operand_NS // 10**place % 10 for place in (2, 1, 0)] + [separator_NS]
        inputs_NS4 = np.where(present_NS[..., None], np.stack(columns, axis=-1), PAD)

        places = np.arange(self.max_answer - 2, -1, -1)
        digits_NA = zero + total_N[:, None] // 10**places % 10
        leading_NA = (total_N[:, None] < 10**places) & (places > 0)
        answer_NA = np.where(leading_NA, PAD, digits_NA)
        answer_NA = np.concatenate([answer_NA, np.full((count, 1), EOS)], axis=1)
        answer = np.zeros_like(answer_NA)  # PAD; a fixed width, so that blocks can be joined.
        aligned = left_align(answer_NA)
        answer[:, : aligned.shape[1]] = aligned
        return Examples(inputs_NS4.reshape(count, -1), answer)
