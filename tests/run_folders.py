"""Folders of runs as training and evaluate leave them, written by hand: what reports read."""

import json
import pathlib
from typing import Any

from etils import epath
from helpers import small_config

from looped_jax import config as config_lib
from looped_jax.analysis.records import append_evaluation

ACCURACY = "eval/group_z7_n4/accuracy"


def write_run(
    folder: pathlib.Path, lines: list[dict[str, float]], **overrides: object
) -> epath.Path:
    """A run's folder as training leaves it, but for checkpoints."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(config_lib.to_json(small_config(**overrides)))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return epath.Path(folder)


def evaluated(value: float, step: int = 12) -> list[dict[str, float]]:
    """Lines of two evaluations, the last one of this accuracy."""
    return [{"step": 6, ACCURACY: value / 2}, {"step": step, ACCURACY: value}]


def write_provenance(workdir: epath.Path, numerics: int, rows: int = 8) -> None:
    """Its run.json, of three starts on two code versions, the last of which has not ended."""
    content = {
        "code": {"version": "0.1", "commit": "0123456789abcdef", "changed": True},
        "numerics_format": numerics,
        "devices": {"kind": "cpu", "count": 8, "processes": 1},
        "held_out": {"group_z7_n4": {"rows": rows}},
        "started": "2030-01-01T00:00:00+00:00",
        "ended": None,
        "command": "main.py --config=x.py",
        "from_step": 4,
        "to_step": 12,
        "earlier": [
            {"code": {"commit": "looked again"}, "from_step": 4, "to_step": 4},
            {"code": {"commit": "fedcba9876543210"}, "from_step": 0, "to_step": 4},
        ],
    }
    (workdir / "run.json").write_text(json.dumps(content))


def keep(workdir: epath.Path, step: int, loops: int | None, value: float, **other: Any) -> None:
    """An evaluation with this many loops."""
    known = dict(split="validation", overrides={}, checkpoint="c", data="d") | other
    split = known.pop("split")
    append_evaluation(workdir, step, loops, split, {ACCURACY: value}, **known)
