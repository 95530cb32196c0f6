"""What made the runs of a report, and what of it forbids to compare them."""

import json
from collections.abc import Sequence
from typing import Any

from looped_jax.analysis.document import Table
from looped_jax.analysis.records import UNKNOWN, Record
from looped_jax.training.identity import measured_on

# Of a list of runs in a warning.
NAMED = 4


def provenance_table(records: Sequence[Record]) -> Table:
    """Code of every start of a run that trained; numerics, devices, times and command of the last
    one."""
    header = ["run", "code", "numerics format", "devices", "starts", "started", "ended", "command"]
    rows = [[record.name, *_cells(record)] for record in records]
    note = (
        "From run.json in each run's folder: the code of every start that trained, and the rest of "
        "the last one. Runs of different numerics formats compute different numbers from the same "
        "config."
    )
    return Table("provenance", "What made the runs", header, rows, note)


def _cells(record: Record) -> list[str]:
    known = record.provenance
    if not known:
        return [UNKNOWN, *[""] * 6]
    devices = known.get("devices") or {}
    starts = [*reversed(known.get("earlier") or ()), known]
    trained = [s for s in starts if s.get("to_step", 0) > s.get("from_step", 0)] or [known]
    count = f"{devices.get('count', '?')} x {devices.get('kind', '?')}" if devices else ""
    if devices.get("processes", 1) > 1:
        count += f" in {devices['processes']} processes"
    return [
        ", then ".join(dict.fromkeys(_code(start) for start in trained)),
        record.numerics,
        count,
        str(1 + len(known.get("earlier") or ())),
        str(known.get("started") or ""),
        str(known.get("ended") or "not ended"),
        str(known.get("command") or ""),
    ]


def _code(start: dict[str, Any]) -> str:
    code = start.get("code") or {}
    commit = str(code.get("commit") or "")[:12]
    changed = " with changes" if code.get("changed") else ""
    return f"{commit}{changed}" if commit else str(code.get("version") or UNKNOWN)


def mixed_numerics(records: Sequence[Record]) -> list[str]:
    """One line if runs of different numerics formats are among these."""
    names: dict[str, list[str]] = {}
    for record in records:
        names.setdefault(record.numerics, []).append(record.name)
    if len(names) < 2:
        return []
    listed = "; ".join(f"{which}: {_some(of)}" for which, of in sorted(names.items()))
    return [f"Runs of different numerics formats are not comparable ({listed})"]


def mixed_samples(records: Sequence[Record]) -> list[str]:
    """A line for every evaluation that was measured on different held-out examples."""
    samples: dict[str, dict[str, list[str]]] = {}
    for record in records:
        for name, identity in measured_on(record.provenance).items():
            which = json.dumps(identity, sort_keys=True)
            samples.setdefault(name, {}).setdefault(which, []).append(record.name)
    return [
        f"{name} was measured on different held-out examples ("
        + " | ".join(map(_some, by_sample.values()))
        + "): not comparable"
        for name, by_sample in samples.items()
        if len(by_sample) > 1
    ]


def _some(names: Sequence[str]) -> str:
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")
