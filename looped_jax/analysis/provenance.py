"""What made the runs of a report, and what of it forbids to compare them."""

import datetime
import json
from collections.abc import Sequence
from typing import Any

from looped_jax.analysis.document import Facts, Table
from looped_jax.analysis.records import UNKNOWN, Record
from looped_jax.training.identity import measured_on

# Of a list of runs in a warning.
NAMED = 4


def facts(records: Sequence[Record], counts: str, made: str) -> Facts:
    """What a reader asks first. ``counts``: how many models on what; ``made``: when and by which
    command the page was made, empty if that is not to be said."""
    known = [record.provenance for record in records if record.provenance]
    starts = [start for of in known for start in _starts(of)]
    rows = [
        ("Runs", counts),
        ("Seeds", ", ".join(map(str, sorted({record.seed for record in records})))),
        ("Trained", _when(starts)),
        ("Code", _listed([_versions(start) for of in known for start in _that_trained(of)])),
        ("Devices", _listed([_devices(of) for of in known])),
        ("Commands", _listed([str(of.get("command") or "") for of in known], most=1)),
        ("Report", made),
    ]
    return Facts([(name, fact) for name, fact in rows if fact])


def _when(starts: Sequence[dict[str, Any]]) -> str:
    began = sorted(str(start["started"]) for start in starts if start.get("started"))
    ended = sorted(str(start["ended"]) for start in starts if start.get("ended"))
    if not began:
        return UNKNOWN
    return f"{_minute(began[0])} to {_minute(ended[-1]) if ended else 'now: not ended'}"


def _minute(time: str) -> str:
    """`2030-01-01 00:00 UTC` of a time as run.json has it."""
    try:
        moment = datetime.datetime.fromisoformat(time)
    except ValueError:
        return time
    return f"{moment.astimezone(datetime.UTC):%Y-%m-%d %H:%M} UTC"


def _listed(words: Sequence[str], most: int = NAMED) -> str:
    """Each once, and how many more there are."""
    found = list(dict.fromkeys(filter(None, words)))
    more = f" (and {len(found) - most} more, see Provenance)" if len(found) > most else ""
    return ("; ".join(found[:most]) or UNKNOWN) + more


def _versions(start: dict[str, Any]) -> str:
    jax = (start.get("versions") or {}).get("jax")
    return _code(start) + (f" on jax {jax}" if jax else "")


def provenance_tables(records: Sequence[Record]) -> list[Table]:
    """Code of every start of a run that trained; numerics, devices and times of the last one; and
    its command."""
    header = ["run", "code", "numerics format", "devices", "starts", "started", "ended"]
    rows = [[record.name, *_cells(record)] for record in records]
    note = (
        "From run.json in each run's folder: the code of every start that trained, and the rest of "
        "the last one. Runs of different numerics formats compute different numbers from the same "
        "config."
    )
    commands = [
        [record.name, str(record.provenance.get("command") or UNKNOWN)] for record in records
    ]
    return [
        Table("provenance", "What made the runs", header, rows, note),
        Table("commands", "Their commands", ["run", "command"], commands),
    ]


def _cells(record: Record) -> list[str]:
    known = record.provenance
    if not known:
        return [UNKNOWN, *[""] * 5]
    return [
        ", then ".join(dict.fromkeys(_code(start) for start in _that_trained(known))),
        record.numerics,
        _devices(known),
        str(1 + len(known.get("earlier") or ())),
        str(known.get("started") or ""),
        str(known.get("ended") or "not ended"),
    ]


def _starts(known: dict[str, Any]) -> list[dict[str, Any]]:
    """The oldest first."""
    return [*reversed(known.get("earlier") or ()), known]


def _that_trained(known: dict[str, Any]) -> list[dict[str, Any]]:
    trained = [s for s in _starts(known) if s.get("to_step", 0) > s.get("from_step", 0)]
    return trained or [known]


def _devices(known: dict[str, Any]) -> str:
    devices = known.get("devices") or {}
    count = f"{devices.get('count', '?')} x {devices.get('kind', '?')}" if devices else ""
    if devices.get("processes", 1) > 1:
        count += f" in {devices['processes']} processes"
    return count


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
