"""The form of what a metric scores, checked where a file is read: metrics take it for granted.

A record is a JSON object with `answers`, a list of all accepted texts, and `prediction`, a text (of
DROP, where an answer is several spans, also a list of them); and what the official metric of its
task needs beside them. A key that is null is as absent, but for `answers`.
"""

import reprlib
from collections.abc import Callable, Mapping
from typing import Any

from looped_jax.errors import UserError


def check_record(record: Any, where: str, spans: bool = False) -> dict[str, Any]:
    """A record in the form above, optional keys that are null left out; keys that no metric
    knows stay as they are. ``spans``: whether a prediction may be a list of texts.

    SQuAD's own `[{"text": …}]` is taken as its texts. UserError names ``where`` and the key.
    """
    if not isinstance(record, Mapping):
        raise UserError(f"{where}: not a JSON object")
    checked = {key: value for key, value in record.items() if value is not None}
    if "answers" not in checked:
        raise UserError(f'{where}: no "answers" list')
    checked["answers"] = _texts_of(checked["answers"], where)
    kinds = _KINDS | ({"prediction": _TEXT_OR_SPANS} if spans else {})
    for key, (right, wanted) in kinds.items():
        if key in checked and not right(checked[key]):
            raise wrong(where, key, checked[key], wanted)
    return checked


def wrong(where: str, key: str, value: Any, wanted: str) -> UserError:
    """The error for a value that has another form than ``wanted``."""
    return UserError(f'{where}: "{key}" is {reprlib.repr(value)}, not {wanted}')


def _texts_of(answers: Any, where: str) -> list[str]:
    wanted = 'a list of texts, e.g. ["Paris"]'
    if not isinstance(answers, (list, tuple)):
        raise wrong(where, "answers", answers, wanted)
    texts = []
    for answer in answers:
        text = answer.get("text") if isinstance(answer, Mapping) else answer
        if not isinstance(text, str):
            raise wrong(where, "answers", answers, wanted)
        texts.append(text)
    return texts


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_name(value: Any) -> bool:
    return _is_text(value) or _is_whole(value)


def _are_texts(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(map(_is_text, value))


def _is_probability(value: Any) -> bool:
    return (_is_whole(value) or isinstance(value, float)) and 0 <= value <= 1


def _are_drop_answers(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_drop_answer, value))


def _is_drop_answer(value: Any) -> bool:
    """{"number": "3", "spans": [], "date": {"day": "", "month": "", "year": ""}}, any of them null
    or absent."""
    if not isinstance(value, Mapping):
        return False
    date = value.get("date") or {}
    return (
        _is_text(value.get("number") or "")
        and _are_texts(value.get("spans") or [])
        and isinstance(date, Mapping)
        and all(_is_text(date.get(part) or "") for part in ("day", "month", "year"))
    )


_Kind = tuple[Callable[[Any], bool], str]
_NAME: _Kind = (_is_name, "a text or a whole number")
_TEXT_OR_SPANS: _Kind = (lambda value: _is_text(value) or _are_texts(value), "a text or texts")
_KINDS: dict[str, _Kind] = {
    "id": _NAME,
    "prediction": (_is_text, "a text"),
    "no_answer_probability": (_is_probability, "a number from 0 to 1"),
    "drop_answers": (
        _are_drop_answers,
        'a list of {"number": "3", "spans": ["…"], "date": {"year": "1990"}}',
    ),
    "dialogue_id": _NAME,
    "domain": (_is_text, "a text"),
}
