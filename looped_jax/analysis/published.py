"""The numbers that the paper reports, from data/paper/, and whether they agree with each other."""

import csv
import dataclasses
import functools
import re

from looped_jax.analysis.fits import percent_gap, percent_gap_range
from looped_jax.config import ASSETS
from looped_jax.models.loop_plan import LoopPlan

FOLDER = ASSETS / "paper"
# Columns that say what a model is, not how good it is.
DESCRIPTIVE = ("model", "params", "flops")
# Tables of synthetic tasks.
SYNTHETIC = ("addition", "phop", "igsm")
# Of lm_groups.csv: what the models are judged by, and the decimals that are printed.
JUDGED = {
    "perplexity": 2,
    "closed_book_qa": 1,
    "open_book_qa": 1,
    "math_word_problems": 1,
    "all_tasks": 1,
    "reasoning_primitives": 1,
}


@functools.cache
def table(name: str) -> dict[str, dict[str, float]]:
    """Model -> column -> value of data/paper/<name>.csv; what is not printed is absent."""
    with (FOLDER / f"{name}.csv").open() as file:
        return {
            row["model"]: {k: float(v) for k, v in row.items() if k not in DESCRIPTIVE and v}
            for row in csv.DictReader(file)
        }


def model_name(plan: LoopPlan, block: int = 0, strength: float = 0.0) -> str:
    """The name in the tables of a plan, with a regulariser of ``block`` layers if not 0."""
    name = str(plan)
    if len(plan.segments) > 1:
        name = f"middle-{name.replace(',', '-')}"
    return f"{name}-reg-k{block}-lambda{strength:g}" if block else name


def find(task: str, plan: LoopPlan, block: int = 0, strength: float = 0.0) -> float | None:
    """The accuracy, in %, that the paper reports for a synthetic task; None if it does not."""
    if match := re.fullmatch(r"(addition|phop)_(.*)", task):
        name, column = match[1], match[2]
    else:
        name, column = task, "accuracy"
    if not (FOLDER / f"{name}.csv").exists():
        return None
    return table(name).get(model_name(plan, block, strength), {}).get(column)


@dataclasses.dataclass(frozen=True)
class PrintedGap:
    """A printed % Gap beside what the printed averages give."""

    model: str
    metric: str
    printed: float
    recomputed: float
    allowed: tuple[float, float]  # Given that averages and gap are rounded.

    @property
    def agrees(self) -> bool:
        return self.allowed[0] <= self.printed <= self.allowed[1]


def printed_gaps() -> list[PrintedGap]:
    """Every % Gap of table 3 recomputed from the averages in the same table."""
    models = table("lm_groups")
    full = models["24x1"]
    gaps = []
    for model, row in models.items():
        for metric, decimals in JUDGED.items():
            if (printed := row.get(f"gap_{metric}")) is None:
                continue
            base = models[_iso_parameter(model)]
            numbers = row[metric], base[metric], full[metric]
            low, high = percent_gap_range(*numbers, decimals)
            recomputed = percent_gap(*numbers)
            assert recomputed is not None  # No base equals the full model.
            # Gaps are printed without decimals, some of them cut off (44.9 as 44).
            allowed = (low - 1, high + 0.5)
            gaps.append(PrintedGap(model, metric, printed, recomputed, allowed))
    return gaps


def _iso_parameter(model: str) -> str:
    """The model of as many layers, each applied once."""
    plan = LoopPlan.parse(model.removeprefix("middle-").replace("-", ","))
    return f"{plan.distinct_layers}x1"
