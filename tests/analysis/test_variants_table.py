"""The fair table of kinds of loops: which runs it takes (benchmarks/variants.py)."""

import dataclasses
import pathlib
from typing import Any

import pytest

from benchmarks.variants import LOOPS, VIEWS, best_arms, measured, shown, view
from looped_jax.analysis.records import find_runs
from looped_jax.config import default_config


@dataclasses.dataclass(frozen=True)
class Run:
    """What of a Record is asked."""

    name: str
    config: Any
    value: float

    seed = property(lambda run: run.config.seed)
    step = property(lambda run: run.config.train.steps)

    def last(self, metric: str) -> float:
        return self.value


def run(name: str, rate: float, seed: int, value: float) -> Any:
    config = default_config()
    config.seed, config.optimizer.learning_rate = seed, rate
    return Run(f"{name}_lr{rate:g}_seed{seed}", config, value)


TUNING = [run("add", rate, 0, value) for rate, value in ((1e-3, 0.9), (3e-3, 0.97), (1e-2, 0.91))]
MEASURED = [run("add", 3e-3, seed, 0.8) for seed in (3, 1, 2)]


def test_the_rate_is_the_tuning_seeds_and_what_is_reported_the_others() -> None:
    (arm,) = best_arms([*TUNING, *MEASURED], "eval/group_s3_n7/accuracy")
    assert (arm.rate, arm.at_an_end) == (3e-3, False)
    assert [record.seed for record in arm.records] == [1, 2, 3]
    with pytest.raises(SystemExit, match=r"its best rate is 0\.001, where seeds"):
        best_arms([*TUNING, *MEASURED], "eval/text/loss")  # The lowest is the best.


def test_an_arm_without_all_its_seeds_is_refused() -> None:
    with pytest.raises(SystemExit, match=r"add: its best rate is 0.003.*there are \[1, 3\]"):
        best_arms([*TUNING, *MEASURED[:2]], "eval/group_s3_n7/accuracy")


def test_an_arm_is_shown_with_its_worst_and_best_seed() -> None:
    assert shown([0.5, 0.7, 0.9], percent=True) == "70.0 (50.0 to 90.0)"
    assert shown([3.5, 3.25, 3.0], percent=False) == "3.250 (3.000 to 3.500)"


def arm_of(value: float, **costs: float) -> dict[str, Any]:
    same = dict.fromkeys(("parameters", "token_flops", "cache_bytes", "training_flops"), 100.0)
    seen = {"plan": "1x3", "learning_rate": 3e-3, "rate_at_an_end": False, "steps": 10}
    return {"seen": {**seen, **same, **costs}, "loops": 3, "values": {"n7": {"3": [value] * 3}}}


def test_a_view_has_the_arms_of_equal_cost_and_the_best_comes_first() -> None:
    arms = {  # Of which the plain loop need not be the first.
        "untied": arm_of(0.9, parameters=300.0),
        "plain": arm_of(0.5),
        "unlooped": arm_of(0.4, token_flops=34.0),
        "concat": arm_of(0.6, parameters=109.0, token_flops=109.0),
        "cached twice": arm_of(0.7, cache_bytes=200.0),
    }
    shown_in = {
        title: [row.split(" | ")[0].strip("| ") for row in view(arms, of, ["n7"]).splitlines()[2:]]
        for title, of in VIEWS.items()
    }
    assert shown_in == {
        "equal training FLOPs": ["untied", "cached twice", "concat", "plain", "unlooped"],
        "equal parameters": ["cached twice", "concat", "plain", "unlooped"],
        "equal inference FLOPs and cache": ["untied", "concat", "plain"],
    }


def test_a_plan_without_loops_is_measured_once_and_the_others_at_every_count(
    variants_run: pathlib.Path,
) -> None:
    records, _ = find_runs([str(variants_run)])
    of = {record.name: list(measured(record, [])["group_z7_n4"]) for record in records}
    assert of == {"base": [1], "looped": list(LOOPS), "iso_flop": [1]}
