"""What one record of a source, a JSON line or a row of a table, says: a document."""

import dataclasses
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from looped_jax.errors import UserError, nearest

# The component of a document that names none.
UNNAMED = "unnamed"
_ABSENT = object()
_MOST_NAMES = 20  # In a message.


class Turn(NamedTuple):
    """A text to train on, after a prompt that is read but not trained on."""

    prompt: str
    text: str


@dataclasses.dataclass(frozen=True)
class Document:
    """Turns, most often one without a prompt, and the component of the data set they belong to."""

    turns: tuple[Turn, ...]
    component: str  # `pile_set_name`.

    @property
    def text(self) -> str:
        """All of it, trained on or not."""
        return "".join(part for turn in self.turns for part in turn)


@dataclasses.dataclass(frozen=True)
class Reading:
    """How documents are found in what is read: config.data.*_column and document_separator.

    A column is a name, or names joined by dots that lead into objects within objects.
    """

    text: str = "text"
    prompt: str = "prompt"  # "": none.
    component: str = "meta.pile_set_name"  # "": none.
    separator: str = ""  # Of plain text, data/plain_text.py.


PILE = Reading()


def document_of(record: Any, where: str, reading: Reading = PILE) -> Document:
    """The document that a record says; UserError, beginning with ``where``, if it says none.

    It has a text, with or without a prompt, or several of them in a list `turns`. A component that
    is asked for by another name than the Pile's must be there, and may be null.
    """
    document = Document(tuple(_turns(record, where, reading)), _component(record, where, reading))
    try:
        f"{document.component}{document.text}".encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{where}: it holds a lone surrogate, so is not Unicode") from error
    return document


def line_of(document: Document) -> bytes:
    """A JSON line in the Pile's format that `document_of` makes the same document of."""
    turns: list[dict[str, str]] = [
        {"prompt": turn.prompt, "text": turn.text} if turn.prompt else {"text": turn.text}
        for turn in document.turns
    ]
    record: dict[str, Any] = {**turns[0]} if len(turns) == 1 else {"turns": turns}
    if document.component != UNNAMED:
        record["meta"] = {"pile_set_name": document.component}
    return json.dumps(record, ensure_ascii=False).encode() + b"\n"


def missing(column: str, key: str, there: list[str]) -> str:
    """For messages: a column that is asked for is not there, what is, and what may be meant."""
    shown = ", ".join(there[:_MOST_NAMES]) + (", …" if len(there) > _MOST_NAMES else "")
    return f"no {column!r} (config.data.{key}); it has {shown or 'nothing'}{nearest(column, there)}"


def _turns(record: Any, where: str, reading: Reading) -> Iterator[Turn]:
    if not isinstance(record, dict):
        raise UserError(f'{where}: no "{reading.text}" field with a string')
    found = [(_at(record, reading.prompt), _at(record, reading.text))]
    among = ""
    if record.get("turns") is not None:
        if any(part is not _ABSENT and part is not None for part in found[0]):
            raise UserError(f'{where}: "turns" and "text" or "prompt" beside it; one of them')
        turns, among = record["turns"], ' in each of "turns"'
        if not isinstance(turns, list) or not turns:
            raise UserError(f'{where}: "turns" is not a list of {{"prompt": …, "text": …}}')
        found = [(_at(turn, "prompt"), _at(turn, "text")) for turn in turns]
    for prompt, text in found:
        if not isinstance(text, str):
            name = "text" if among else reading.text
            what = f'no "{name}" field with a string{among}'
            if text is None:
                what = f'"{name}" is null{among}'
            elif text is _ABSENT and not among:
                what += f"; {missing(name, 'text_column', _names(record))}"
            raise UserError(f"{where}: {what}")
        if prompt is _ABSENT or prompt is None:
            prompt = ""
        if not isinstance(prompt, str):
            raise UserError(f'{where}: "{reading.prompt}" is not a string')
        yield Turn(prompt, text)


def _component(record: dict[str, Any], where: str, reading: Reading) -> str:
    column = reading.component
    found = _at(record, column)
    if isinstance(found, str):
        return found
    if column in ("", PILE.component) or found is None:
        return UNNAMED
    if isinstance(found, int):
        return str(found)
    if found is _ABSENT:
        raise UserError(
            f"{where}: {missing(column, 'component_column', _names(record))}; '' is for none"
        )
    raise UserError(f'{where}: "{column}" (config.data.component_column) is no name')


def _at(value: Any, path: str, top: bool = True) -> Any:
    """What a path leads to, also into JSON that a string holds; _ABSENT if it leads nowhere."""
    if isinstance(value, str) and not top:
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return _ABSENT
    if not path or not isinstance(value, dict):
        return _ABSENT
    if path in value:
        return value[path]
    head, dot, rest = path.partition(".")
    return _at(value[head], rest, top=False) if dot and head in value else _ABSENT


def _names(record: dict[str, Any]) -> list[str]:
    """The columns of a record, and the ones within them."""
    names = []
    for name, value in record.items():
        names.append(name)
        if isinstance(value, dict):
            names += [f"{name}.{inner}" for inner in value]
    return names
