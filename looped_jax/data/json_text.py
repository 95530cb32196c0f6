"""JSON that others wrote: whatever is wrong with it is said in one line that says where."""

import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

from etils import epath

from looped_jax.errors import UserError


def parse_json(content: bytes, where: str) -> Any:
    """The value that ``content`` says; UserError, beginning with ``where``, if it says none."""
    try:
        return json.loads(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 at its byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not JSON ({error.msg})") from error
    except ValueError as error:  # Python reads whole numbers of up to 4,300 digits.
        raise UserError(f"{where}: a number with too many digits") from error
    except RecursionError as error:
        raise UserError(f"{where}: nested too deeply") from error


def json_lines(path: epath.Path) -> Iterator[tuple[str, Any]]:
    """(where, value) of each line that is not blank; UserError as parse_json, or if the file
    cannot be read."""
    if not path.is_file():
        raise UserError(f"no file {path}")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    for number, line in enumerate(content.split(b"\n"), start=1):
        if line.strip():
            where = f"{path}, line {number}"
            yield where, parse_json(line, where)


def sound_lines(
    path: epath.Path, is_one: Callable[[dict[str, Any]], bool]
) -> tuple[list[dict[str, Any]], list[str]]:
    """The objects in a file of a run, one a line, and what is said of lines left out: those that a
    power cut or a full disk has damaged, or that ``is_one`` does not take. No file: none; a last
    line without an end is one that was being written, and left out without a word."""
    lines: list[dict[str, Any]] = []
    problems: list[str] = []
    for number, text in enumerate(path.read_bytes().split(b"\n")[:-1] if path.exists() else ()):
        if not text.strip():
            continue
        try:
            line = parse_json(text, "")
        except UserError:
            line = None
        if isinstance(line, dict) and is_one(line):
            lines.append(line)
        else:
            problems.append(f"line {number + 1} of {path.name} is damaged and left out")
    return lines, problems


def say_once(path: epath.Path, problems: list[str]) -> None:
    """Says on stderr what is wrong with a file, to a user who has not been told."""
    for problem in problems:
        if (said := (path.resolve(), problem)) not in _SAID:
            _SAID.add(said)
            print(f"{path.parent}: {problem}", file=sys.stderr)


_SAID: set[tuple[epath.Path, str]] = set()
