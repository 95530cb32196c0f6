"""Symbolic i-GSM (paper, section 2.3; simplified from Ye et al. 2024).

Structure graph: 4 levels of entities (A-D, E-H, I-L, M-P); in each, 2 to 4 of its letters take
part. An edge joins an entity to one of the next level and is one parameter, written `E#I`;
every entity below the first level has at least one edge from above. There are 8 to 16
parameters (more edges are drawn until the number is reached, or no pair is left).

Dependency graph: the parameters in a random order. The first is an integer 0..6; of the later
ones one in eight is, but never the last. The others are a sum or difference of 1 to 3 distinct
earlier parameters, one of them among the latest four, with an integer 1..6 added in one of
eight. One in four has a leading coefficient 2..6, which multiplies the whole right-hand side:
`I#N := 2 * J#P + H#J + E#I.` is 2 (J#P + H#J + E#I). Arithmetic is modulo 7.

The statements are shuffled, and the question is the last parameter: `I#P?`. Its answer is one
digit. `igsm_p<M>` has problems of 2 to M parameters (M below 8), for small models; not every
entity takes part in them. `igsm_cot` has the solution as its target: every parameter that the
question needs, in
an order in which each can be computed, as `I#N = 2 * J#P + H#J + E#I. => I#N = 4. `, and at the
end the answer. A parameter name, a number and an operator are one token each.

Statistics over 100,000 examples (benchmarks/igsm_statistics.py):
                                              mean   10%  median  90%   range
  parameters                                  12.2     9      12   16    8-16
  of them needed for the answer                8.0     5       8   11    2-16
  depth (longest chain, the question counted)  6.3     4       6    9    2-14
  additions, subtractions, multiplications     7.7     2       7   14    0-30
"""

import dataclasses
import itertools

import numpy as np

from looped_jax.data.rows import EOS, PAD
from looped_jax.data.tasks.base import Examples, SyntheticTask, Vocabulary, left_align
from looped_jax.errors import UserError

MODULUS = 7
LEVELS = ("ABCD", "EFGH", "IJKL", "MNOP")
MAX_PARAMETERS = 16
MIN_PARAMETERS = 8
MAX_OPERANDS = 3
RECENT = 4

# All 48 possible parameters, level by level, parent-major.
NAMES = tuple(
    f"{parent}#{child}"
    for above, below in itertools.pairwise(LEVELS)
    for parent in above
    for child in below
)


@dataclasses.dataclass(frozen=True)
class Problems:
    """N problems as arrays. P parameters in an order in which each can be computed.

    name_NP: index into NAMES; count_N: parameters in use (the question is the last of them);
    operand_NP3: earlier parameters, -1 where unused; minus_NP3: whether it is subtracted;
    constant_NP: the integer addend, -1 for none; coefficient_NP: 1 for none; value_NP: mod 7.
    """

    name_NP: np.ndarray
    count_N: np.ndarray
    operand_NP3: np.ndarray
    minus_NP3: np.ndarray
    constant_NP: np.ndarray
    coefficient_NP: np.ndarray
    value_NP: np.ndarray

    def needed_NP(self) -> np.ndarray:
        """Parameters on which the question depends, itself included."""
        count, width = self.name_NP.shape
        rows = np.arange(count)
        needed = np.zeros((count, width), dtype=bool)
        needed[rows, self.count_N - 1] = True
        for p in range(width - 1, 0, -1):
            for operand in self.operand_NP3[:, p].T:
                use = needed[:, p] & (operand >= 0)
                needed[rows[use], operand[use]] = True
        return needed

    def depth_N(self) -> np.ndarray:
        """Longest chain of parameters from an integer to the question, both counted."""
        depth_NP = np.ones_like(self.name_NP)
        for p in range(1, depth_NP.shape[1]):
            below = np.take_along_axis(depth_NP, np.maximum(self.operand_NP3[:, p], 0), axis=1)
            depth_NP[:, p] = 1 + np.where(self.operand_NP3[:, p] >= 0, below, 0).max(axis=1)
        return depth_NP[np.arange(len(depth_NP)), self.count_N - 1]

    def operations_N(self) -> np.ndarray:
        """Additions, subtractions and multiplications needed for the question."""
        terms_NP = (self.operand_NP3 >= 0).sum(axis=2) + (self.constant_NP >= 0)
        operations_NP = terms_NP - 1 + (self.coefficient_NP > 1)
        return (operations_NP * self.needed_NP()).sum(axis=1)


def draw_problems(rng: np.random.Generator, count: int, most: int = MAX_PARAMETERS) -> Problems:
    """Draws problems of up to ``most`` parameters, as the module says."""
    name_NP, count_N = _draw_parameters(rng, count, most)
    shape = name_NP.shape
    width = shape[1]
    column = np.arange(width)

    is_question = column == count_N[:, None] - 1
    is_integer = ((rng.random(shape) < 1 / 8) & ~is_question) | (column == 0)
    terms = np.minimum(rng.integers(1, MAX_OPERANDS + 1, size=shape), np.maximum(column, 1))
    terms = np.where(is_integer, 0, terms)
    operand = np.full((*shape, MAX_OPERANDS), -1)
    for p in range(1, width):
        # A random order of the earlier parameters with a recent one in front.
        priority = rng.random((count, p))
        recent = np.maximum(p - RECENT, 0) + rng.integers(0, min(p, RECENT), size=count)
        priority[np.arange(count), recent] = -1.0
        chosen = np.argsort(priority, axis=1)[:, :MAX_OPERANDS]
        # The recent one stands anywhere in the statement.
        use = np.arange(chosen.shape[1]) < terms[:, p, None]
        shuffle = np.argsort(np.where(use, rng.random(use.shape), 2.0), axis=1)
        operand[:, p, : chosen.shape[1]] = np.where(
            use, np.take_along_axis(chosen, shuffle, axis=1), -1
        )
    minus = (rng.random(operand.shape) < 1 / 4) & (np.arange(MAX_OPERANDS) > 0) & (operand >= 0)
    integer = rng.integers(0, MODULUS, size=shape)
    addend = rng.integers(1, MODULUS, size=shape)
    has_addend = rng.random(shape) < 1 / 8
    constant = np.where(is_integer, integer, np.where(has_addend, addend, -1))
    coefficient = rng.integers(2, MODULUS, size=shape)
    coefficient = np.where(~is_integer & (rng.random(shape) < 1 / 4), coefficient, 1)

    value = np.zeros(shape, dtype=np.int64)
    for p in range(width):
        terms_N3 = np.take_along_axis(value, np.maximum(operand[:, p], 0), axis=1)
        terms_N3 = np.where(operand[:, p] >= 0, np.where(minus[:, p], -terms_N3, terms_N3), 0)
        total = terms_N3.sum(axis=1) + np.maximum(constant[:, p], 0)
        value[:, p] = coefficient[:, p] * total % MODULUS
    return Problems(name_NP, count_N, operand, minus, constant, coefficient, value)


def _draw_parameters(
    rng: np.random.Generator, count: int, most: int
) -> tuple[np.ndarray, np.ndarray]:
    """Edges of the structure graph in random order: (name_NP, count_N)."""
    size = len(LEVELS[0])
    present = np.argsort(rng.random((count, len(LEVELS), size)), axis=2) < rng.integers(
        2, size + 1, size=(count, len(LEVELS), 1)
    )
    gaps = len(LEVELS) - 1
    possible = present[:, :-1, :, None] & present[:, 1:, None, :]  # [N, gap, parent, child]
    score = np.where(possible, rng.random(possible.shape), 2.0)
    # Each child's edge from one parent comes first, whatever the number of parameters.
    first_parent = np.argmin(score, axis=2)
    mandatory = (np.arange(size)[:, None] == first_parent[:, :, None, :]) & possible
    score = np.where(mandatory, -1.0, score).reshape(count, gaps * size * size)
    if most < MIN_PARAMETERS:
        count_N = rng.integers(2, most + 1, size=count)
    else:
        wanted = rng.integers(MIN_PARAMETERS, most + 1, size=count)
        count_N = np.minimum(
            np.maximum(wanted, mandatory.sum(axis=(1, 2, 3))), possible.sum(axis=(1, 2, 3))
        )
    chosen = np.argsort(score, axis=1, kind="stable")[:, :most]
    unused = np.arange(most) >= count_N[:, None]
    order = np.argsort(np.where(unused, 2.0, rng.random(unused.shape)), axis=1)
    return np.take_along_axis(chosen, order, axis=1), count_N


class SymbolicIGSM(SyntheticTask):
    """`igsm` (the answer alone), `igsm_p<M>` (of at most M parameters) or `igsm_cot` (the worked
    solution)."""

    vocabulary = Vocabulary(
        (*NAMES, *"0123456", " := ", " = ", " + ", " - ", " * ", ". ", ". => ", "?")
    )

    def __init__(self, name: str, chain_of_thought: bool, most: int = MAX_PARAMETERS):
        if most != MAX_PARAMETERS and not 2 <= most < MIN_PARAMETERS:
            raise UserError(f"task {name}: parameters must be 2 to {MIN_PARAMETERS - 1}")
        self.name = name
        self.most = most
        self.chain_of_thought = chain_of_thought
        right_hand_side = 2 + MAX_OPERANDS + 1 + MAX_OPERANDS  # Coefficient, terms, signs.
        self.max_inputs = most * (3 + right_hand_side) + 2
        step = 3 + right_hand_side + 4
        self.max_answer = most * step + 2 if chain_of_thought else 1
        self.chance = None if chain_of_thought else 1 / MODULUS

    def draw(self, rng: np.random.Generator, count: int) -> Examples:
        problems = draw_problems(rng, count, self.most)
        rows = np.arange(count)
        width = problems.name_NP.shape[1]
        name, zero = self.vocabulary.id(NAMES[0]), self.vocabulary.id("0")
        used = np.arange(width) < problems.count_N[:, None]

        statements = self._statements(problems, " := ", ". ")
        shuffle = np.argsort(np.where(used, rng.random(used.shape), 2.0), axis=1)
        shuffled = np.where(used[..., None], statements, PAD)[rows[:, None], shuffle]
        question = problems.name_NP[rows, problems.count_N - 1, None] + name
        mark = np.full((count, 1), self.vocabulary.id("?"))
        inputs = np.concatenate([shuffled.reshape(count, -1), question, mark], axis=1)
        answer = problems.value_NP[rows, problems.count_N - 1, None] + zero
        if self.chain_of_thought:
            steps = np.concatenate(
                [
                    self._statements(problems, " = ", ". => "),
                    problems.name_NP[..., None] + name,
                    np.full((count, width, 1), self.vocabulary.id(" = ")),
                    problems.value_NP[..., None] + zero,
                    np.full((count, width, 1), self.vocabulary.id(". ")),
                ],
                axis=2,
            )
            steps = np.where(problems.needed_NP()[..., None], steps, PAD).reshape(count, -1)
            answer = np.concatenate([steps, answer, np.full((count, 1), EOS)], axis=1)
        return Examples(
            _padded(left_align(inputs), self.max_inputs),
            _padded(left_align(answer), self.max_answer),
        )

    def _statements(self, problems: Problems, becomes: str, end: str) -> np.ndarray:
        """Token ids [N, P, S], PAD in unused places."""
        ident = self.vocabulary.id
        name, zero = ident(NAMES[0]), ident("0")

        def when(condition: np.ndarray, tokens: np.ndarray | int) -> np.ndarray:
            return np.where(condition, tokens, PAD)

        everywhere = np.ones(problems.name_NP.shape, dtype=bool)
        scaled = problems.coefficient_NP > 1
        columns = [
            problems.name_NP + name,
            when(everywhere, ident(becomes)),
            when(scaled, problems.coefficient_NP + zero),
            when(scaled, ident(" * ")),
        ]
        for i in range(MAX_OPERANDS):
            present = problems.operand_NP3[..., i] >= 0
            if i:
                sign = np.where(problems.minus_NP3[..., i], ident(" - "), ident(" + "))
                columns.append(when(present, sign))
            operand = np.maximum(problems.operand_NP3[..., i], 0)
            operand_name = np.take_along_axis(problems.name_NP, operand, axis=1)
            columns.append(when(present, operand_name + name))
        has_constant = problems.constant_NP >= 0
        after_operand = problems.operand_NP3[..., 0] >= 0
        columns.append(when(has_constant & after_operand, ident(" + ")))
        columns.append(when(has_constant, problems.constant_NP + zero))
        columns.append(when(everywhere, ident(end)))
        return np.stack(columns, axis=-1)


def _padded(tokens_NS: np.ndarray, width: int) -> np.ndarray:
    return np.pad(tokens_NS, ((0, 0), (0, width - tokens_NS.shape[1])))
