"""The prompts of downstream tasks as records, for models that are run elsewhere."""

from collections.abc import Iterator
from typing import Any

from looped_jax.evaluation.downstream import Asked


def prompt_records(asked: Asked, style_name: str) -> Iterator[dict[str, Any]]:
    """One of each example: what is asked, up to which text or how many tokens the answer goes, and
    what looped_jax.score needs beside a `prediction`. A prompt that is `too_long` even without its
    exemplars and context is none that we ask.
    """
    stop = list(asked.task.style(style_name).stop)
    for example, prompt in zip(asked.examples, asked.prompts, strict=True):
        yield {
            "task": asked.task.name,
            "id": example.id,
            "prompt": prompt.text,
            "stop": stop,
            "max_new_tokens": asked.task.max_new_tokens,
            "too_long": prompt.too_long,
            "answers": list(example.answers),
            **example.fields,
        }
