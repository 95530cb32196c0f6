"""Variable assignment, the reasoning primitive of the paper's section 4 (after MIDAS).

Five distinct letters get integers from 1 to 25; at depth 1 five more letters are then each
set to one of the first five, one to one. The question is the value of one letter (at depth 1
of an alias). `math` writes equations, `code` a Python program:

    n=22            n = 22
    r=16            r = 16

Around them stands a fixed instruction before and the question after, as in the source. A
letter, a number and each fixed piece of text are one token each.
"""

import string

import numpy as np

from looped_jax.data.tasks.base import Examples, SyntheticTask, Vocabulary

VARIABLES = 5
LARGEST = 25

# (before, between name and value, after a line, before the letter asked for, after it)
FORMS = {
    "math": (
        "The following is a set of simple mathematical equations.\n\n",
        "=",
        "\n",
        "What is the numerical value of ",
        "?\nAnswer:",
    ),
    "code": (
        "The following is a very short Python program. Use the program to resolve the value of "
        "the variable in the question.\nProgram:\n",
        " = ",
        "\n",
        "\nQuestion:\nWhat is the value of ",
        "?\nAnswer:",
    ),
}


class VariableAssignment(SyntheticTask):
    """Depth 0 (values) or 1 (aliases of values), as equations or as code."""

    max_answer = 1
    chance = 1 / VARIABLES  # One of the values that are seen.

    def __init__(self, name: str, depth: int, form: str):
        self.name = name
        self.depth = depth
        self.pieces = FORMS[form]
        numbers = tuple(str(i) for i in range(1, LARGEST + 1))
        fixed = tuple(dict.fromkeys(self.pieces))
        self.vocabulary = Vocabulary((*string.ascii_lowercase, *numbers, *fixed))
        self.max_inputs = 1 + 4 * VARIABLES * (1 + depth) + 3

    def draw(self, rng: np.random.Generator, count: int) -> Examples:
        vocabulary = self.vocabulary
        before, equals, line, ask, end = vocabulary.ids(self.pieces)
        letters = rng.permuted(np.tile(np.arange(26), (count, 1)), axis=1)
        letters = vocabulary.id("a") + letters[:, : VARIABLES * (1 + self.depth)]
        values = rng.integers(0, LARGEST, size=(count, VARIABLES)) + vocabulary.id("1")
        right_hand_sides = [values]
        answers = values
        if self.depth:
            source = rng.permuted(np.tile(np.arange(VARIABLES), (count, 1)), axis=1)
            right_hand_sides.append(np.take_along_axis(letters, source, axis=1))
            answers = np.take_along_axis(values, source, axis=1)
        right = np.concatenate(right_hand_sides, axis=1)
        constant = np.ones_like(letters)
        lines = np.stack([letters, constant * equals, right, constant * line], axis=-1)
        asked = rng.integers(0, VARIABLES, size=(count, 1))
        asked_letter = np.take_along_axis(letters, asked + VARIABLES * self.depth, axis=1)
        one = np.ones((count, 1), dtype=np.int64)
        inputs = np.concatenate(
            [one * before, lines.reshape(count, -1), one * ask, asked_letter, one * end], axis=1
        )
        return Examples(inputs, np.take_along_axis(answers, asked, axis=1))
