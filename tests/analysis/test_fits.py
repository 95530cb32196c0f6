"""% Gap, isoplot lines and the scaling law, against numbers worked by hand."""

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from looped_jax.analysis.fits import (
    Line,
    ScalingLaw,
    alpha_ratio,
    percent_gap,
    percent_gap_range,
)

numbers = st.floats(-100, 100).map(lambda x: round(x, 2))


def test_the_gap_is_zero_at_the_base_and_a_hundred_at_the_full_model() -> None:
    assert percent_gap(26.7, 26.7, 29.3) == 0
    assert percent_gap(29.3, 26.7, 29.3) == pytest.approx(100)
    # The paper's 12x2 on perplexity: (7.90 - 8.16) / (7.40 - 8.16).
    assert percent_gap(7.90, 8.16, 7.40) == pytest.approx(100 * 26 / 76)


def test_there_is_no_gap_between_equals() -> None:
    assert percent_gap(1.0, 2.0, 2.0) is None


@given(numbers, numbers, numbers, st.integers(-5, 5), st.integers(-5, 5), st.integers(-5, 5))
def test_the_range_of_a_gap_holds_whatever_was_rounded(
    looped: float, base: float, full: float, i: int, j: int, k: int
) -> None:
    low, high = percent_gap_range(looped, base, full, decimals=1)
    exact = [x + n / 100 for x, n in ((looped, i), (base, j), (full, k))]
    assume(abs(exact[2] - exact[1]) > 1e-6)
    gap = percent_gap(*exact)
    assert gap is not None
    if math.isfinite(low):
        assert low - 1e-6 * abs(low) - 1e-9 <= gap <= high + 1e-6 * abs(high) + 1e-9


def test_a_line_is_recovered_with_no_width_where_points_lie_on_it() -> None:
    line = Line.fit([1, 2, 4], [5, 7, 11])
    assert line is not None
    assert (line.slope, line.intercept, line.r2) == pytest.approx((2, 3, 1))
    np.testing.assert_allclose(line.band(np.array([1.0, 3.0])), 0, atol=1e-9)


def test_the_confidence_band_is_that_of_the_textbook() -> None:
    # x = 0, 1, 2 and y = 0, 2, 1: slope 1/2, intercept 1/2, residuals -1/2, 1, -1/2, so
    # s^2 = 1.5 / 1; at x = 1 the half width is t(0.975; 1 degree of freedom) sqrt(1.5 / 3).
    line = Line.fit([0, 1, 2], [0, 2, 1])
    assert line is not None
    assert (line.slope, line.intercept) == pytest.approx((0.5, 0.5))
    half = line.band(np.array([1.0]))
    assert half is not None
    assert half[0] == pytest.approx(12.7062 * math.sqrt(0.5), rel=1e-4)


def test_fewer_than_two_points_have_no_fit() -> None:
    assert Line.fit([3.0], [1.0]) is None
    assert Line.fit([3.0, 3.0], [1.0, 2.0]) is None
    assert ScalingLaw.fit([], []) is None
    assert ScalingLaw.fit([4], [10.0]) is None
    assert alpha_ratio(([4], [1.0]), ([4, 8], [1.0, 2.0])) is None


def test_two_points_have_a_line_and_no_band() -> None:
    line = Line.fit([0, 1], [1, 3])
    assert line is not None
    assert line.band(np.array([0.5])) is None


def test_two_depths_have_a_slope_and_no_interval() -> None:
    fit = ScalingLaw.fit([4, 8], [10.0, 20.0])
    assert fit is not None
    assert fit.alpha_interval is None
    found = alpha_ratio(([4, 8], [10.0, 20.0]), ([4, 8, 16], [10.0, 15.0, 20.0]))
    assert found == (pytest.approx(2), None)


@given(st.floats(-50, 50), st.floats(0.5, 20))
def test_the_scaling_law_is_recovered_from_its_own_values(beta: float, alpha: float) -> None:
    depths = [4, 8, 12, 24]
    fit = ScalingLaw.fit(depths, [alpha * math.log(d) + beta for d in depths])
    assert fit is not None
    assert (fit.alpha, fit.beta) == pytest.approx((alpha, beta), rel=1e-6, abs=1e-6)
    assert fit.alpha_interval == pytest.approx((alpha, alpha), rel=1e-6)


def test_the_ratio_of_slopes_has_an_interval_around_it() -> None:
    rng = np.random.default_rng(0)
    depths = [4, 8, 12, 24, 36, 48]
    base = [10 * math.log(d) + rng.normal() for d in depths]
    looped = [12 * math.log(d) + rng.normal() for d in depths]
    found = alpha_ratio((depths, looped), (depths, base))
    assert found is not None
    ratio, interval = found
    assert interval is not None
    low, high = interval
    assert low < ratio < high
    assert ratio == pytest.approx(1.2, abs=0.15)
