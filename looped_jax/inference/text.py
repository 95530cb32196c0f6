"""From text to text: prompts as strings, continuations cut at stop texts, and what a model reads of
a text that is too long."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from looped_jax.errors import UserError
from looped_jax.inference.generator import GREEDY, Generated, Usage
from looped_jax.inference.sampling import Sampling


class Continues(Protocol):
    """What continues prompts: a Generator, or another project's model (interop/hf_model.py)."""

    max_length: int  # Tokens that it reads at most.
    batch_size: int
    usage: Usage

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        *,
        sampling: Sampling = GREEDY,
        seed: int = 0,
        first_number: int = 0,
        stop: Callable[[list[int]], bool] | None = None,
        on_tokens: Callable[[int, list[int]], None] | None = None,
        chunk: int = 16,
    ) -> list[Generated]:
        """See Generator.generate."""
        ...


def cut(text: str, stops: Sequence[str]) -> str:
    """The text before the first of the stop texts."""
    return text[: min((text.find(stop) for stop in stops if stop in text), default=len(text))]


def prompt_ids(vocabulary: Any, text: str) -> list[int]:
    """The ids of a text as a model's prompt: what its vocabulary puts before it (``before``) and
    its own; BOS alone if these are none. UserError for text that is not Unicode."""
    return [*vocabulary.before, *text_ids(vocabulary, text)] or [vocabulary.bos]


def text_ids(vocabulary: Any, text: str) -> list[int]:
    """The ids of a text alone; UserError for text that is not Unicode."""
    try:
        return [int(i) for i in vocabulary.encode(text)]
    except UnicodeEncodeError as error:
        raise UserError("the prompt is not Unicode text") from error


def pair_ids(vocabulary: Any, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Token ids of a context (`prompt_ids`, at least BOS) and of a continuation to score after it.

    They are tokenised together, and blanks at the end of the context belong to the continuation,
    as in the lm-evaluation-harness. Where a token would lie across the border, the continuation is
    tokenised by itself, as answers are in training (data/text.py). UserError for an empty one, or
    for text that is not Unicode.
    """
    stripped = context.rstrip(" ")
    continuation = context[len(stripped) :] + continuation
    if not continuation:
        raise UserError(f"an empty continuation cannot be scored (its context: {context[-40:]!r})")
    before = text_ids(vocabulary, stripped)
    whole = text_ids(vocabulary, stripped + continuation)
    # Something is read before the first token that is scored, if only BOS.
    lead = [*vocabulary.before] or ([] if before else [vocabulary.bos])
    if whole[: len(before)] == before and len(whole) > len(before):
        return [*lead, *before], whole[len(before) :]
    return [*lead, *before], text_ids(vocabulary, continuation)


def fit_pair(
    context: list[int], continuation: list[int], max_length: int
) -> tuple[list[int], list[int]]:
    """A pair as a model of ``max_length`` can score it: its last max_length + 1 tokens (the last is
    never read), of which the first is context."""
    whole = [*context, *continuation][-(max_length + 1) :]
    said = min(len(continuation), len(whole) - 1)
    return whole[:-said], whole[-said:]


def fit_prompt(prompt: list[int], max_new_tokens: int, max_length: int, kept: int = 1) -> list[int]:
    """A prompt that leaves room for ``max_new_tokens``, but keeps half of the length where so many
    would leave it less: its first ``kept`` tokens (BOS, say) stay, what follows them loses its
    beginning."""
    room = max(max_length + 1 - max_new_tokens, max_length // 2, kept)
    if len(prompt) <= room:
        return prompt
    return [*prompt[:kept], *prompt[len(prompt) - room + kept :]]


def complete(
    generator: Continues,
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
    ``max_new_tokens``; ``vocabulary`` encodes and decodes, and its EOS is the generator's. See
    Generator.generate."""

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
