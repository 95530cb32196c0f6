"""Experiment files: `FILE.py` or `FILE.py:ARGUMENT` -> a checked config.

A file defines ``get_config()`` (or ``get_config(argument)``), which starts from
``default_config()`` and overrides what differs.
"""

import importlib.util
import inspect
import pathlib
import re
import sys
import traceback
import types
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from looped_jax.config.config_dict import apply_overrides, default_config, flatten, kind, set_key
from looped_jax.config.keys import KEYS
from looped_jax.config.places import PROJECT_ROOT
from looped_jax.config.validation import validate
from looped_jax.errors import UserError, nearest


def load_experiment(spec: str, overrides: Mapping[str, str] | None = None) -> ConfigDict:
    """Loads ``FILE.py`` or ``FILE.py:ARGUMENT``, applies overrides, validates.

    The argument goes to the file's ``get_config(argument)``. Raises UserError in one line for
    a missing file, a file that fails, an unknown key, a wrong type or an impossible value.
    """
    path_text, argument = _split_spec(spec)
    path = pathlib.Path(path_text)
    get_config = load_function(path_text, "get_config", "experiment")
    made = call(path_text, get_config, *([argument] if argument else []))
    if not isinstance(made, ConfigDict):
        raise UserError(
            f"{path}: get_config() returned {kind(made)}; it must return what default_config() "
            "gives, changed"
        )
    config = _with_known_keys(made, path_text)
    if not config.name:
        config.name = path.stem + (f"_{argument.replace(',', '-')}" if argument else "")
    apply_overrides(config, overrides or {})
    validate(config)
    return config


def _split_spec(spec: str) -> tuple[str, str]:
    """FILE.py and the argument behind it; a folder's name may have a colon too."""
    match = re.fullmatch(r"(.*?\.py):(.*)", spec)
    return (match[1], match[2]) if match else (spec, "")


def _with_known_keys(made: ConfigDict, where: str) -> ConfigDict:
    """The same config with every key there and of its type, whatever was done to it."""
    config = default_config()
    values = dict(flatten(made))
    if missing := sorted({*dict(flatten(config))} - set(values)):
        raise UserError(f"{where}: its config has no key {missing[0]!r}, which it needs")
    for key, value in values.items():
        try:
            set_key(config, key, value)
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
    return config


def load_function(path_text: str, function: str, kind: str) -> Callable[..., Any]:
    """The function that a Python file of the user's defines; UserError if there is none."""
    path = pathlib.Path(path_text)
    if not path.is_file() and (PROJECT_ROOT / path).is_file():
        path = PROJECT_ROOT / path  # A shipped one, named from another folder.
        path_text = str(path)
    if not path.is_file():
        siblings = (
            [str(p) for p in sorted(path.parent.glob("*.py"))] if path.parent.is_dir() else []
        )
        raise UserError(f"no {kind} file {path_text}" + nearest(path_text, siblings))
    found = call(path_text, _load_module, path).__dict__.get(function)
    if not callable(found):
        raise UserError(f"{path} defines no {function}()")
    if inspect.iscoroutinefunction(found):
        raise UserError(f"{path}: {function}() must be a plain function, not an async one")
    return found


def call(path_text: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls what a file of the user's is or defines; UserError with file, line and reason for
    whatever it raises."""
    try:
        return function(*arguments)
    except (UserError, KeyboardInterrupt):
        raise
    except SyntaxError as error:
        where = f"{error.filename}:{error.lineno}" if error.filename else path_text
        raise UserError(f"{where}: {error.msg}") from error
    except BaseException as error:  # Whatever a file of the user's does, SystemExit too.
        frames = traceback.extract_tb(error.__traceback__)
        own = [f for f in frames if pathlib.Path(f.filename) == pathlib.Path(path_text).absolute()]
        where = f"{path_text}:{own[-1].lineno}" if own else path_text
        raise UserError(f"{where}: {_explained(error)}") from error


def _explained(error: BaseException) -> str:
    message = " ".join(str(error).split())
    # ConfigDict's lock lists all keys there are.
    if match := re.match(r"[\"']*Key \\?[\"'](\w+)\\?[\"'] does not exist", message):
        known = [key.rsplit(".", 1)[-1] for key in KEYS]
        return f"config has no key {match[1]!r} there{nearest(match[1], known)}"
    return f"{type(error).__name__}: {message[:300]}" if message else type(error).__name__


def _load_module(path: pathlib.Path) -> types.ModuleType:
    # Experiments share bases (`from experiments import ...`): the project root must be on the
    # path also when the command was started from another folder.
    if str(PROJECT_ROOT) not in sys.path:
        sys.path.append(str(PROJECT_ROOT))
    spec = importlib.util.spec_from_file_location(f"experiment_{path.stem}", path.absolute())
    if spec is None or spec.loader is None:
        raise UserError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
