"""What a tracker is, and how a run remembers what it is called there."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Protocol

from etils import epath
from ml_collections import ConfigDict

from looped_jax.data.files import write_whole

# In a run's folder: tracker -> the run's id there.
IDS = "trackers.json"


@dataclasses.dataclass(frozen=True)
class Start:
    """What a tracker opens with: a run that goes on from ``step``, so that what was written of
    later steps is written again. ``writes``: this process does it, and something is left to do."""

    workdir: epath.Path
    config: ConfigDict
    step: int
    writes: bool = True


class Tracker(Protocol):
    """One more place for the scalars of a run, opened with a Start. What any of its methods raises
    ends the tracker, and not the run."""

    # The step until which it has all of the run; what metrics.jsonl has beyond is sent first.
    complete_until: int

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Sends named scalars of one step; a step may be written several times."""

    def flush(self) -> None:
        """Puts on disk what was written."""

    def close(self, finished: bool) -> None:
        """Ends what this process sends; ``finished``: the run has made its last step."""


def known_id(workdir: epath.Path, tracker: str) -> str | None:
    """The run's id there; None if it has none yet."""
    found = _ids(workdir).get(tracker)
    return found if isinstance(found, str) else None


def remember_id(workdir: epath.Path, tracker: str, run_id: str) -> None:
    """Keeps the run's id there for the next start."""
    ids = {**_ids(workdir), tracker: run_id}
    write_whole(workdir / IDS, json.dumps(ids, indent=1) + "\n")


def _ids(workdir: epath.Path) -> dict[str, object]:
    path = workdir / IDS
    try:
        content = json.loads(path.read_text()) if path.exists() else {}
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
