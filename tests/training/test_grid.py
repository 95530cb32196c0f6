"""Grids of overrides: how many points, which values, and names that tell them apart."""

import math
import pathlib
import re
from typing import Any

import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

from looped_jax.errors import UserError
from looped_jax.training.grid import (
    LONGEST,
    at_equal_flops,
    crossed,
    product,
    run_name,
    runs,
    zipped,
)
from looped_jax.training.job import planned_step_flops
from looped_jax.training.sweep import SweepRun, load_sweep

KEYS = ("model.plan", "optimizer.learning_rate", "loop.norms", "model.norm", "train.norm")
SCALARS = st.one_of(st.integers(), st.floats(allow_nan=False), st.booleans(), st.text(max_size=20))
VALUES = st.lists(SCALARS, min_size=1, max_size=4)
AXES = st.dictionaries(st.sampled_from(KEYS), VALUES, min_size=1)


@given(AXES)
def test_a_product_has_every_combination_once_and_in_order(axes: dict[str, Any]) -> None:
    points = product(axes)
    assert len(points) == math.prod(map(len, axes.values()))
    for i, point in enumerate(points):
        place = i
        for key, values in reversed(axes.items()):
            place, at = divmod(place, len(values))
            assert point[key] is values[at]


@given(st.integers(1, 5), st.sets(st.sampled_from(KEYS), min_size=1))
def test_what_is_zipped_goes_together(count: int, keys: set[str]) -> None:
    points = zipped({key: [(key, i) for i in range(count)] for key in keys})
    assert points == tuple({key: (key, i) for key in keys} for i in range(count))


@given(st.integers(0, 4), st.integers(1, 4))
def test_every_arm_is_crossed_with_the_same_rates(arms: int, rates: int) -> None:
    grid = product({"optimizer.learning_rate": [10.0**-i for i in range(rates)]})
    points = crossed([{"model.plan": f"{i + 1}x1"} for i in range(arms)], grid)
    assert len(points) == arms * rates
    for i in range(arms):
        own = [p for p in points if p["model.plan"] == f"{i + 1}x1"]
        assert [p["optimizer.learning_rate"] for p in own] == [10.0**-n for n in range(rates)]


def test_a_product_is_its_axes_crossed() -> None:
    axes = {"model.plan": ("1x1", "1x2"), "seed": (0, 1, 2)}
    assert product(axes) == crossed(*(product({key: axes[key]}) for key in axes))


@given(st.lists(st.sampled_from(KEYS), min_size=1, unique=True), st.data())
def test_names_are_folders_and_tell_points_of_the_same_keys_apart(
    keys: list[str], data: st.DataObject
) -> None:
    texts = st.one_of(st.text(max_size=200), st.sampled_from(["1x1,1x2", "a_norm=b", "b", "a"]))
    a, b = ({key: data.draw(texts) for key in keys} for _ in range(2))
    assert (run_name(a) == run_name(b)) == (a == b)
    for name in (run_name(a), run_name(b)):
        assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._=+-]*", name)
        assert len(name) <= LONGEST + 9


@given(st.lists(st.floats(allow_nan=False), unique=True, min_size=2))
def test_numbers_are_told_apart_as_they_are(numbers: list[float]) -> None:
    names = [run_name({"optimizer.learning_rate": number}) for number in numbers]
    assert len(set(names)) == len(numbers)
    assert [float(name.partition("=")[2]) for name in names] == numbers


def test_names_say_the_values_and_the_section_only_where_it_is_needed() -> None:
    point = {"model.plan": "1x1,2x2,1x1", "optimizer.learning_rate": 3e-3}
    assert run_name(point) == "plan=1x1-2x2-1x1_learning_rate=0.003"
    arm = {"optimizer.name": "muon", "train.batch_size": 8, "model.dtype": "float32"}
    assert run_name(arm) == "optimizer.name=muon_train.batch_size=8_dtype=float32"
    assert run_name({}) == "base"
    assert re.fullmatch(r"tasks=-a-b--[0-9a-f]{8}", run_name({"eval.tasks": ("a", "b")}))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: product({"model.plan": "1x1"}), r"axis model\.plan: '1x1' is no list of values"),
        (lambda: zipped({"seed": 3}), r"axis seed: 3 is no list of values; for one value: \(3,\)"),
        (lambda: zipped({"a": (1, 2), "b": (1,)}), r"as many values each \(a: 2, b: 1\)"),
        (lambda: crossed([{"a": 1}], [{"b": 1}, {"a": 2}]), "two of the crossed grids set a"),
    ],
)
def test_a_grid_that_cannot_be_says_why(make: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


def test_a_point_decides_over_what_all_runs_have() -> None:
    (run,) = runs("x.py", [{"a": 1}], {"a": 2, "b": 3})
    assert (run.name, run.config, run.overrides) == ("a=1", "x.py", {"a": 1, "b": 3})


SWEEP = """
from looped_jax.training.grid import crossed, product, runs, zipped

ARMS = zipped({"model.plan": ("4x1", "2x2"), "train.batch_size": (32, 64)})
RATES = product({"optimizer.learning_rate": (1e-3, 3e-3)})


def get_sweep():
    return runs("experiments/phop.py:1x6", crossed(ARMS, RATES), {"train.steps": 500})
"""


def test_a_sweep_file_of_a_grid_has_a_run_for_each_point(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "sweep.py"
    path.write_text(SWEEP)
    loaded = {run.name: config for run, config in load_sweep(str(path), {}).items()}
    assert list(loaded) == [
        f"plan={plan}_train.batch_size={size}_learning_rate={rate}"
        for plan, size in (("4x1", 32), ("2x2", 64))
        for rate in (0.001, 0.003)
    ]
    last = loaded["plan=2x2_train.batch_size=64_learning_rate=0.003"]
    assert (last.model.plan, last.train.batch_size, last.train.steps) == ("2x2", 64, 500)
    assert last.optimizer.learning_rate == 0.003


GROUP = str(ROOT / "experiments" / "group.py")
SHORT = {"train.steps": 1000, "optimizer.warmup_steps": 200}


def test_steps_at_equal_flops_cost_the_same_and_warm_up_alike() -> None:
    arms = [{"model.plan": "1x1"}, {"model.plan": "1x6"}, {"loop.injection": "concat"}]
    points = at_equal_flops(GROUP, arms, SHORT, {})
    whole = planned_step_flops(SweepRun("whole", GROUP, SHORT).load()) * 1000
    assert points[0]["train.steps"] > 2000 > 1000 > points[2]["train.steps"]
    for arm, point in zip(arms, points, strict=True):
        assert arm.items() <= point.items()
        cost = planned_step_flops(SweepRun("arm", GROUP, point).load()) * point["train.steps"]
        assert cost == pytest.approx(whole, rel=1e-3)
        assert point["optimizer.warmup_steps"] / point["train.steps"] == pytest.approx(
            0.2, abs=1e-3
        )


def test_steps_that_grow_have_no_equal_flops() -> None:
    grows = {"counts.curriculum": "linear", "counts.curriculum_steps": 100}
    with pytest.raises(UserError, match=r"curriculum=linear.*: its steps grow"):
        at_equal_flops(GROUP, [grows], SHORT, {})
