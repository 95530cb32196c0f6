"""One question of a downstream task."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from looped_jax.data.tasks.downstream.records import check_record, wrong
from looped_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Example:
    """One question. ``answers``: all that are accepted; () where it cannot be answered."""

    id: str
    question: str
    answers: tuple[str, ...]
    context: str = ""
    title: str = ""
    # The conversation so far: (question, the first reference's answer).
    history: tuple[tuple[str, str], ...] = ()
    # What the metric needs beside the answers, as looped_jax.score takes it.
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def dialogue(self) -> str:
        """Id of the conversation that the question is a turn of; its own where it is of none."""
        return str(self.fields.get("dialogue_id", self.id))


def first_answer(example: Example) -> str:
    """What an exemplar answers."""
    return example.answers[0]


def check_example(example: Example, where: str) -> None:
    """UserError, beginning with ``where``, if what is to be text is none, or not Unicode, or if
    ``fields`` are not of the form that metrics take."""
    said = [part for turn in example.history for part in turn]
    texts = {"id": [example.id], "question": [example.question], "history": said}
    texts |= {"context": [example.context], "title": [example.title]}
    for key, parts in texts.items():
        for part in parts:
            if not isinstance(part, str):
                raise wrong(where, key, part, "a text")
    record = check_record({**example.fields, "answers": list(example.answers)}, where)
    try:
        for part in (*(p for parts in texts.values() for p in parts), *record["answers"]):
            part.encode("utf-8")
        json.dumps(record, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(f"{where}: a lone surrogate, so not Unicode text") from error
