"""The fair table of kinds of loops: which runs it takes (benchmarks/variants.py)."""

import dataclasses
from typing import Any

import pytest

from benchmarks.variants import best_arms, shown
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
