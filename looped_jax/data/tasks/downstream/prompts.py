"""How an example is asked: styles, exemplars, and prompts that fit."""

import bisect
import dataclasses
import hashlib
import random
import re
from collections.abc import Callable, Sequence

from looped_jax.data.tasks.downstream.example import Example, first_answer
from looped_jax.errors import UserError

# A longer run of letters is no word whose beginning is worth losing.
_LONGEST_WORD = 64


@dataclasses.dataclass(frozen=True)
class Style:
    """How an example is asked: the text up to where the answer starts, and the answer.

    A prompt is the preamble, then each exemplar with its answer, then the question, all joined by
    ``separator``; a blank stands before an answer.
    """

    question: Callable[[Example], str]
    answer: Callable[[Example], str] = first_answer
    separator: str = "\n\n"
    preamble: str = ""
    stop: tuple[str, ...] = ("\n",)

    def question_and_answer(self, example: Example) -> tuple[str, str]:
        """The two parts of the text of an example whose answer is shown."""
        return self.question(example), f" {self.answer(example)}"


def draw_exemplars(pool: Sequence[Example], shots: int, seed: int = 0) -> list[Example]:
    """The same exemplars for everybody: drawn from the pool, ordered by id, by a fixed seed.

    A conversation is one exemplar: its last turn, which carries all before it. UserError if the
    pool has too few.
    """
    last_turns = {example.dialogue: example for example in pool}
    if shots > len(last_turns):
        raise UserError(f"{shots} shots were asked for, the training split has {len(last_turns)}")
    ordered = sorted(last_turns.values(), key=lambda example: example.id)
    return random.Random(seed).sample(ordered, shots)


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A prompt's text, the ids of the exemplars in it, and what did not fit: how many exemplars
    went, whether the context (or the conversation) lost its beginning, whether all that is not
    enough."""

    text: str
    exemplars: tuple[str, ...]
    dropped: int = 0
    context_cut: bool = False
    too_long: bool = False

    @property
    def hash(self) -> str:
        """Twelve hex digits of the text's SHA-256: equal prompts can be told by it."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:12]


def build_prompt(
    style: Style,
    example: Example,
    exemplars: Sequence[Example],
    fits: Callable[[str], bool],
) -> Prompt:
    """The longest prompt that fits: exemplars go from the front, then, if need be, the beginning
    of the context (whole words, where it has words) and of the conversation; never the question.
    """
    shown = ["".join(style.question_and_answer(e)) for e in exemplars]

    def text(first_exemplar: int, asked: Example) -> str:
        parts = [*shown[first_exemplar:], style.question(asked)]
        return style.preamble + style.separator.join(parts)

    for dropped in range(len(shown) + 1):
        if fits(text(dropped, example)):
            kept = tuple(e.id for e in exemplars[dropped:])
            return Prompt(text(dropped, example), kept, dropped)

    # What may go from the front: the context, then turns of the conversation.
    size, turns = len(example.context), example.history

    def shortened(cut: int) -> str:
        context, history = example.context[cut:], turns[max(0, cut - size) :]
        return text(len(shown), dataclasses.replace(example, context=context, history=history))

    cut = bisect.bisect_left(range(size + len(turns)), True, key=lambda cut: fits(shortened(cut)))
    short = shortened(_word_at(example.context, cut) if cut <= size else cut)
    return Prompt(short, (), len(shown), context_cut=True, too_long=not fits(short))


def _word_at(text: str, at: int) -> int:
    """Where the first whole word at or after a place begins; the place itself within what is too
    long for a word, as where a language is written without blanks."""
    for word in re.finditer(r"\S+", text):
        if word.start() >= at:
            return word.start()
        if word.end() > at and word.end() - word.start() > _LONGEST_WORD:
            return at
    return len(text)
