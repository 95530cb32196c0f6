"""Examples from files on disk: the simple form, and whatever form a set was released in."""

from collections.abc import Callable, Iterator
from typing import Any

from etils import epath

from looped_jax.data.json_text import json_lines
from looped_jax.data.tasks.downstream.example import Example, check_example
from looped_jax.data.tasks.downstream.records import check_record, wrong
from looped_jax.errors import UserError

Reader = Callable[[epath.Path], Iterator[Example]]


def read_simple(path: epath.Path, split: str) -> list[Example]:
    """Reads the simple form: JSON lines with id, question, answers, context, title, history
    [{question, answer}], split (fewshot or eval), and what else the metric needs.

    UserError names a line that is none, or an id that occurs twice.
    """
    wanted = {"train": "fewshot"}.get(split, "eval")
    examples, seen = [], set()
    for where, line in json_lines(path):
        record = check_record(line, where)
        if absent := [key for key in ("id", "question", "split") if key not in record]:
            raise UserError(f'{where}: not an example: no "{absent[0]}"')
        split_of_line = record.pop("split")
        if split_of_line not in ("fewshot", "eval"):
            raise wrong(where, "split", split_of_line, '"fewshot" or "eval"')
        example = Example(
            id=str(record.pop("id")),
            question=record.pop("question"),
            answers=tuple(record.pop("answers")),
            context=record.pop("context", ""),
            title=record.pop("title", ""),
            history=_turns(record.pop("history", []), where),
            fields=record,
        )
        check_example(example, where)
        if example.id in seen:
            raise UserError(f"{where}: id {example.id!r} occurs twice")
        seen.add(example.id)
        if split_of_line == wanted:
            examples.append(example)
    if not examples:
        raise UserError(f"{path} has no example with split {wanted!r}")
    return examples


def _turns(history: Any, where: str) -> tuple[tuple[str, str], ...]:
    try:
        return tuple((turn["question"], turn["answer"]) for turn in history)
    except (KeyError, TypeError) as error:
        form = '[{"question": "…", "answer": "…"}]'
        raise wrong(where, "history", history, form) from error


# Whatever a reader that was written for one format meets in another.
_OTHER_FORMAT = (
    *(ArithmeticError, AttributeError, LookupError, RecursionError),
    *(SyntaxError, TypeError, ValueError),
)


def read_released(reader: Reader, path: epath.Path) -> list[Example]:
    """All examples that a format's reader finds; UserError if the file is not of that format."""
    try:
        examples = list(reader(path))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except _OTHER_FORMAT as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{path} is not in the released format ({reason})") from error
    for number, example in enumerate(examples, start=1):
        check_example(example, f"{path}, example {number}")
    if not examples:
        raise UserError(f"{path} has no examples")
    return examples
