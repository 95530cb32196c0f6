"""A run's config as a ConfigDict: made, changed key by key, compared, written and read.

It is locked and typed: a misspelt key is an error that names its nearest neighbour.
"""

import ast
import dataclasses
import json
import math
import reprlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from looped_jax.config.keys import KEYS, MOST, RENAMED, RETIRED, SECTIONS
from looped_jax.config.places import expanded
from looped_jax.errors import UserError, nearest


def default_config() -> ConfigDict:
    """Returns every key of a run with its default value; locked: no other key can be set, and none
    to another type."""
    sections = {name: ConfigDict(dataclasses.asdict(of())) for name, of in SECTIONS.items() if name}
    return ConfigDict({**dataclasses.asdict(SECTIONS[""]()), **sections}).lock()


def flatten(config: Mapping[str, Any] | ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (dotted key, value) for every leaf of a config."""
    for key, value in config.items():
        if isinstance(value, (ConfigDict, dict)) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def get_key(config: ConfigDict, dotted_key: str) -> Any:
    """Returns the value at a dotted key such as ``model.d_ff``."""
    value = config
    for part in dotted_key.split("."):
        value = value[part]
    return value


def set_key(config: ConfigDict, dotted_key: str, value: Any) -> None:
    """Sets a dotted key; UserError if it does not exist or the type is wrong."""
    known = dict(flatten(config))
    if not isinstance(dotted_key, str) or dotted_key not in known:
        raise UserError(f"config has no key {dotted_key!r}" + nearest(dotted_key, known))
    old = known[dotted_key]
    if isinstance(old, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) < MOST else math.inf
    if isinstance(old, tuple) and isinstance(value, (list, tuple)):
        value = _tuples(value)
    if isinstance(value, str) and dotted_key in KEYS and KEYS[dotted_key].path:
        value = expanded(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"config.{dotted_key}={value!r} is not a finite number")
    if type(value) is not type(old):
        raise UserError(
            f"config.{dotted_key}={value!r} has type {type(value).__name__}; "
            f"it must be {type(old).__name__} (as in {old!r})"
        )
    *parents, leaf = dotted_key.split(".")
    section = get_key(config, ".".join(parents)) if parents else config
    section[leaf] = value


def parse_value(text: str, old: Any) -> Any:
    """Reads a command-line value as the type of the value it replaces."""
    if isinstance(old, str):
        return text
    if isinstance(old, bool):
        if text.lower() in ("true", "false"):
            return text.lower() == "true"
        return text
    if isinstance(old, tuple) and not text.lstrip().startswith(("(", "[")):
        return tuple(part for part in text.split(",") if part)
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def to_text(value: Any) -> str:
    """A value as ``parse_value`` reads it from a command line."""
    return value if isinstance(value, str) else repr(value)


def apply_overrides(config: ConfigDict, overrides: Mapping[str, str]) -> None:
    """Sets dotted keys from command-line text, e.g. {"train.steps": "100"}."""
    for key, text in overrides.items():
        known = dict(flatten(config))
        set_key(config, key, parse_value(text, known.get(key, "")))


def variant_config(
    config: ConfigDict, name: str, overrides: Sequence[tuple[str, Any]]
) -> ConfigDict:
    """Returns the config of one of ``config.variants``: the base with its overrides."""
    variant = ConfigDict(config.to_dict())  # Not locked, but set_key knows the keys.
    variant.variants = ()
    variant.comparison = default_config().comparison
    variant.name = f"{config.name}/{name}"
    for key, value in overrides:
        set_key(variant, key, value)
    return variant.lock()


def differing_keys(config: ConfigDict, other: ConfigDict) -> list[str]:
    """The keys, in order, whose values differ of those that change what a run computes."""
    here, there = dict(flatten(config)), dict(flatten(other))
    return [
        key
        for key in sorted({*here, *there})
        if here.get(key) != there.get(key) and not _is_operational(key)
    ]


def differences(config: ConfigDict, other: ConfigDict) -> list[str]:
    """Lines ``key: value here, value there`` for keys that change what a run computes."""
    here, there = dict(flatten(config)), dict(flatten(other))
    return [
        f"{key}: {here.get(key)!r} now, {there.get(key)!r} there"
        for key in differing_keys(config, other)
    ]


def _is_operational(key: str) -> bool:
    if key in KEYS:
        return KEYS[key].operational
    # A key of an earlier version, in a section of which all keys are operational.
    section = f"{key.partition('.')[0]}."
    of_section = [known for name, known in KEYS.items() if name.startswith(section)]
    return bool(of_section) and all(known.operational for known in of_section)


def to_json(config: ConfigDict) -> str:
    """The config as written to config.json."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n"


def from_json(text: str) -> ConfigDict:
    """The config written by ``to_json``, also by an earlier version. UserError for what is no
    config, and for a key that changes what a run computes and is not known here."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"not JSON ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{kind(content)}, not the keys of a config")
    config = default_config()
    known = dict(flatten(config))
    dropped = []
    for key, value in flatten(content):
        key = RENAMED.get(key, key)
        # A section that is none, or a value that should not have parts.
        if any(k.startswith(f"{key}.") or key.startswith(f"{k}.") for k in known):
            raise UserError(f"it has {key}={reprlib.repr(value)}, which is not its form")
        if key not in known and (key in RETIRED or _is_operational(key)):
            dropped.append(key)
            continue
        if key not in known:
            raise UserError(
                f"it has {key}={value!r}, which this version does not know: it would compute "
                "something else"
            )
        set_key(config, key, value)
    if dropped:
        print(f"keys of an earlier version left out: {', '.join(dropped)}", file=sys.stderr)
    return config.lock()


def read_config(path: epath.Path) -> ConfigDict:
    """A run's config.json; UserError, naming the file, for one that cannot be read."""
    try:
        return from_json(path.read_text())
    except (UserError, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())}") from error


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, (list, tuple)) else value


def kind(value: object) -> str:
    """What something is that should have been something else."""
    return "nothing" if value is None else f"a {type(value).__name__}"
