"""Whose a folder is: `manifest.partial.json` says which preparation is being made there.

Nothing else is ever mixed in. Only the content of the sources may change, of an unfinished one:
what was done is kept by what it was made of.
"""

import json
import shutil
import sys
from collections import Counter
from typing import Any

from etils import epath

from looped_jax.data.files import write_whole
from looped_jax.data.manifest import NAME, is_prepared, read_manifest
from looped_jax.errors import UserError
from looped_jax.storage.buckets import in_bucket

PARTIAL = "manifest.partial.json"
BAD_LINES = "bad_lines.txt"
WORK = "work"
PACKED = "packed.json"  # Of a split in WORK: what pass 1 made of which sources.


def claim(output: epath.Path, recipe: dict[str, Any]) -> bool:
    """Makes ``output`` this preparation's; whether it was not before. UserError if it is something
    else already."""
    finished = is_prepared(output)
    partial = output / PARTIAL
    if finished or partial.exists():
        there = read_manifest(output).recipe if finished else json.loads(partial.read_text())
        if there != recipe:
            if finished or not _is_mended(recipe, there):
                raise UserError(
                    f"{output} holds another preparation ({_difference(recipe, there)}); "
                    "choose another --output, or remove that folder"
                )
            _take_up(output, recipe, there)
        return False
    begun = {f"{PARTIAL}.tmp"}  # All that a kill before this line can leave.
    if output.exists() and not (output.is_dir() and {p.name for p in output.iterdir()} <= begun):
        raise UserError(f"{output} exists and is not prepared data; choose another --output")
    try:
        output.mkdir(parents=True, exist_ok=True)
        write_whole(partial, json.dumps(recipe))
    except OSError as error:
        raise UserError(f"cannot write in {output}: {error.strerror}") from error
    return True


def open_again(output: epath.Path, recipe: dict[str, Any], lost: list[str]) -> None:
    """Makes a finished preparation an unfinished one, of which some shards were lost: all are made
    again, from the same rows to the same bytes."""
    write_whole(output / PARTIAL, json.dumps(recipe))
    (output / NAME).unlink()
    _remove_shards(output)
    print(
        f"{output}: {len(lost)} of its shards ({', '.join(lost[:3])}{', …' if lost[3:] else ''}) "
        "are not there as they were made; it is prepared again",
        file=sys.stderr,
    )


def _is_mended(recipe: dict[str, Any], there: dict[str, Any]) -> bool:
    """Whether only the sources' content differs, and they are not other sources altogether: files
    have the names they had, or some have the content."""
    if {**recipe, "splits": list(recipe["splits"])} != {**there, "splits": list(there["splits"])}:
        return False
    now, before = _entries(recipe), _entries(there)
    same = now.keys() == before.keys() or not set(now.values()).isdisjoint(before.values())
    return now != before and same


def _entries(recipe: dict[str, Any]) -> dict[tuple[str, str, int], str]:
    """(split, file, which of that name) -> SHA-256."""
    seen: Counter[tuple[str, str]] = Counter()
    entries = {}
    for split, of in recipe["splits"].items():
        for entry in of["sources"]:
            key = (split, entry["file"])
            seen[key] += 1
            entries[(*key, seen[key])] = entry["sha256"]
    return entries


def _take_up(output: epath.Path, recipe: dict[str, Any], there: dict[str, Any]) -> None:
    """Goes on with an unfinished preparation whose sources have changed since."""
    now, before = _entries(recipe), _entries(there)
    keys = sorted(key for key in {**before, **now} if now.get(key) != before.get(key))
    _remove_shards(output)  # They are of rows of all sources, as are runs.
    for name in ("*.run", PACKED):  # What says that all blocks were packed is of runs, too.
        for path in (output / WORK).glob(f"*/{name}"):
            path.unlink()
    write_whole(output / PARTIAL, json.dumps(recipe))
    print(
        f"{output}: other than when it was begun: {', '.join(file for _, file, _ in keys[:5])}"
        f"{f' and {len(keys) - 5} more' if len(keys) > 5 else ''}; only what changed is done again",
        file=sys.stderr,
    )


def _remove_shards(output: epath.Path) -> None:
    for shard in output.glob("*.array_record*"):
        shard.unlink()


def tidy(output: epath.Path) -> None:
    """Removes what a finished preparation needs no more; the claim last."""
    shutil.rmtree(output / WORK, ignore_errors=True)
    (output / PARTIAL).unlink(missing_ok=True)


def abandon(output: epath.Path) -> None:
    """Removes what an unfinished preparation has written."""
    shutil.rmtree(output / WORK, ignore_errors=True)
    _remove_shards(output)
    (output / BAD_LINES).unlink(missing_ok=True)
    (output / PARTIAL).unlink()
    if not in_bucket(output) and not any(output.iterdir()):
        output.rmdir()


def _difference(here: Any, there: Any, at: str = "") -> str:
    """The first difference between two recipes, in words."""
    if isinstance(here, dict) and isinstance(there, dict):
        for key in {**here, **there}:
            if here.get(key) != there.get(key):
                return _difference(here.get(key), there.get(key), f"{at}.{key}" if at else key)
    if isinstance(here, list) and isinstance(there, list) and len(here) == len(there):
        for ours, theirs in zip(here, there, strict=True):
            if ours != theirs:
                return _difference(ours, theirs, f"{at} {ours.get('file', '')}".strip())
    shown = [s if len(s := repr(x)) < 80 else f"{s[:80]}…" for x in (here, there)]
    return f"{at}: {shown[0]} now, {shown[1]} there"
