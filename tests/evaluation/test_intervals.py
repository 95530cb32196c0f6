"""95% intervals: over what was drawn together, and where every score is the same."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from looped_jax.evaluation.intervals import mean_interval


def bounds(scores: list[float], units: list) -> tuple[float, float]:
    found = mean_interval(scores, units)
    assert found is not None
    return found


def test_intervals_cover_the_mean_and_shrink_with_more_examples() -> None:
    (low, high), (lower, higher) = (bounds([1.0, 0.0] * n, list(range(2 * n))) for n in (10, 1000))
    assert low < lower < 0.5 < higher < high
    # 1.96 sqrt(0.25 / 2000) is 0.022.
    assert higher - lower == pytest.approx(0.044, abs=0.005)


def test_turns_of_one_dialogue_count_once() -> None:
    rng = np.random.default_rng(0)
    scores = [float(score) for score in rng.integers(0, 2, 100) for _ in range(8)]
    alone = bounds(scores, list(range(800)))
    together = bounds(scores, [i // 8 for i in range(800)])
    ratio = (together[1] - together[0]) / (alone[1] - alone[0])
    assert ratio == pytest.approx(np.sqrt(8), rel=0.15)


def test_all_right_and_all_wrong_are_not_certain() -> None:
    # 1.96² / (5 + 1.96²) is 0.4345 (Wilson 1927).
    assert bounds([1.0] * 5, list(range(5))) == pytest.approx((1 - 0.4345, 1), abs=1e-4)
    assert bounds([0.0] * 5, list(range(5))) == pytest.approx((0, 0.4345), abs=1e-4)
    assert bounds([0.0] * 50, [i // 10 for i in range(50)]) == bounds([0.0] * 5, list(range(5)))


def test_too_few_to_say_is_none() -> None:
    assert mean_interval([], []) is None
    assert mean_interval([1.0, 0.0], [1, 2]) is None
    assert mean_interval([1.0, 0.0, 1.0, 0.5], [1, 1, 2, 2]) is None


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 9)), min_size=1, max_size=60))
def test_an_interval_is_a_share_whatever_the_units_are_called(
    scored: list[tuple[float, int]],
) -> None:
    scores, units = [score for score, _ in scored], [unit for _, unit in scored]
    found = mean_interval(scores, units)
    if found is None:
        assert len(set(units)) < 3
        return
    low, high = found
    assert 0 <= low <= high <= 1 + 1e-9
    again = mean_interval(scores, [f"d{unit}" for unit in units])
    assert again == found
