"""Reasoning primitives for language models: variable assignment, generated, 5 shots.

The examples of the synthetic tasks of the same names, asked in text. The style `line` is the
paper's one-line illustration: `a=1, b=2, c=6, b=?`.
"""

import re

import numpy as np

from looped_jax.data.tasks.downstream.base import DownstreamTask
from looped_jax.data.tasks.downstream.example import Example
from looped_jax.data.tasks.downstream.prompts import Style
from looped_jax.data.tasks.registry import get_task

SEED = 0


def _generate(name: str, split: str, count: int) -> list[Example]:
    texts = get_task(name).texts(SEED, split, np.arange(count))
    return [
        Example(f"{name}-{split}-{i}", text["inputs"], (text["targets"],))
        for i, text in enumerate(texts)
    ]


def _one_line(example: Example) -> str:
    assignments = re.findall(r"^(\w) ?= ?(\w+)$", example.question, re.MULTILINE)
    asked = re.findall(r"value of (\w)\?", example.question)[-1]
    return ", ".join([*(f"{left}={right}" for left, right in assignments), f"{asked}=?"])


def _task(name: str) -> DownstreamTask:
    return DownstreamTask(
        name=name,
        group="reasoning_primitives",
        metric="exact_text",
        styles={
            "default": Style(lambda e: e.question),
            "line": Style(_one_line, separator="\n"),
        },
        generate=lambda split, count: _generate(name, split, count),
    )


TASKS = tuple(
    _task(f"varassign_depth{depth}_{form}") for depth in (0, 1) for form in ("code", "math")
)
