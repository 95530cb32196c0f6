"""From text to text: prompts as strings, continuations cut at stop texts."""

from collections.abc import Callable, Sequence
from typing import Any

from looped_jax.config import UserError
from looped_jax.data.rows import BOS
from looped_jax.inference.generator import GREEDY, Generator
from looped_jax.inference.sampling import Sampling


def cut(text: str, stops: Sequence[str]) -> str:
    """The text before the first of the stop texts."""
    return text[: min((text.find(stop) for stop in stops if stop in text), default=len(text))]


def prompt_ids(vocabulary: Any, text: str) -> list[int]:
    """BOS and the ids of a text; UserError for text that is not Unicode."""
    try:
        return [BOS, *(int(i) for i in vocabulary.encode(text))]
    except UnicodeEncodeError as error:
        raise UserError("the prompt is not Unicode text") from error


def complete(
    generator: Generator,
    vocabulary: Any,
    prompts: Sequence[str],
    max_new_tokens: int,
    *,
    stops: Sequence[str] = (),
    sampling: Sampling = GREEDY,
    seed: int = 0,
    first_number: int = 0,
    on_tokens: Callable[[int, list[int]], None] | None = None,
    chunk: int = 16,
) -> list[str]:
    """What follows each prompt, up to the first stop text, the end of the document, or
    ``max_new_tokens``; ``vocabulary`` encodes and decodes. See Generator.generate."""

    def stopped(new: list[int]) -> bool:
        text = vocabulary.decode(new)
        return any(stop in text for stop in stops)

    made = generator.generate(
        [prompt_ids(vocabulary, prompt) for prompt in prompts],
        max_new_tokens,
        sampling=sampling,
        seed=seed,
        first_number=first_number,
        stop=stopped if stops else None,
        on_tokens=on_tokens,
        chunk=chunk,
    )
    return [cut(vocabulary.decode(row.tokens), stops) for row in made]
