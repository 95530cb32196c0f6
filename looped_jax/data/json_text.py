"""JSON that others wrote: whatever is wrong with it is said in one line that says where."""

import json
from collections.abc import Iterator
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
