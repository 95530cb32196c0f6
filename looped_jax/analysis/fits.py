"""The paper's derived numbers: % Gap, isoplots, the scaling law (sections 3.2 to 3.5).

Pure functions of numbers. Where the data do not carry a fit they return None.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy import stats

RESAMPLES = 2000
# Fewer points have no interval worth the name: resampled, two give themselves.
MINIMUM = 3


def percent_gap(looped: float, base: float, full: float) -> float | None:
    """How much of the way from the iso-parameter base to the iso-FLOP model looping goes, in %:
    (looped - base) / (full - base) x 100; None where base and full are equal."""
    return None if full == base else 100 * (looped - base) / (full - base)


def percent_gap_range(
    looped: float, base: float, full: float, decimals: int
) -> tuple[float, float]:
    """The % Gaps that numbers rounded to so many decimals allow; infinite where the difference
    of base and full could be zero.

    The ratio is monotone in each of the three as long as full - base keeps its sign, so its
    extremes lie at corners.
    """
    half = 0.5 * 10.0**-decimals
    if abs(full - base) <= 2 * half:
        return -np.inf, np.inf
    corners = [
        100 * (looped + i * half - base - j * half) / (full + k * half - base - j * half)
        for i in (-1, 1)
        for j in (-1, 1)
        for k in (-1, 1)
    ]
    return min(corners), max(corners)


@dataclasses.dataclass(frozen=True)
class Line:
    """y = slope x + intercept by least squares, and what is needed for its confidence band."""

    slope: float
    intercept: float
    r2: float
    x_N: np.ndarray
    residual_error: float  # Standard error of the residuals; 0 with two points.

    @classmethod
    def fit(cls, x: Sequence[float] | np.ndarray, y: Sequence[float]) -> "Line | None":
        """None with fewer than two different x."""
        x_N, y_N = np.asarray(x, float), np.asarray(y, float)
        if len(np.unique(x_N)) < 2:
            return None
        slope, intercept = np.polyfit(x_N, y_N, 1)
        residual_N = y_N - (slope * x_N + intercept)
        total = np.sum((y_N - y_N.mean()) ** 2)
        freedom = len(x_N) - 2
        error = float(np.sqrt(np.sum(residual_N**2) / freedom)) if freedom else 0.0
        r2 = 1.0 if total == 0 else float(1 - np.sum(residual_N**2) / total)
        return cls(float(slope), float(intercept), r2, x_N, error)

    def at(self, x: np.ndarray) -> np.ndarray:
        return self.slope * x + self.intercept

    def band(self, x: np.ndarray, confidence: float = 0.95) -> np.ndarray | None:
        """Half the width of the confidence band of the line at ``x``; None with two points."""
        count = len(self.x_N)
        if count < 3:
            return None
        spread = np.sum((self.x_N - self.x_N.mean()) ** 2)
        t = stats.t.ppf(0.5 + confidence / 2, count - 2)
        width: np.ndarray = (
            t * self.residual_error * np.sqrt(1 / count + (x - self.x_N.mean()) ** 2 / spread)
        )
        return width


@dataclasses.dataclass(frozen=True)
class ScalingLaw:
    """Acc = alpha log D + beta (natural logarithm) with D the effective depth."""

    alpha: float
    beta: float
    # Bootstrap, 95%; None with fewer than three different depths.
    alpha_interval: tuple[float, float] | None

    @classmethod
    def fit(cls, depths: Sequence[float], values: Sequence[float]) -> "ScalingLaw | None":
        """None with fewer than two different depths."""
        line = Line.fit(np.log(depths), values) if len(depths) else None
        if line is None:
            return None
        interval = _interval(_resampled_slopes(depths, values)) if _enough(depths) else None
        return cls(line.slope, line.intercept, interval)


def alpha_ratio(
    looped: tuple[Sequence[float], Sequence[float]], base: tuple[Sequence[float], Sequence[float]]
) -> tuple[float, tuple[float, float] | None] | None:
    """alpha_loop / alpha_base, each from (depths, values), with a bootstrap 95% interval, None
    where either has fewer than three different depths.

    None if either has no fit, or the base's slope is zero.
    """
    fits = [ScalingLaw.fit(*series) for series in (looped, base)]
    if fits[0] is None or fits[1] is None or fits[1].alpha == 0:
        return None
    ratio = fits[0].alpha / fits[1].alpha
    if not (_enough(looped[0]) and _enough(base[0])):
        return ratio, None
    above, below = (_resampled_slopes(*s, seed=i) for i, s in enumerate((looped, base)))
    # Not every resample has a slope: pair as many as both have.
    count = min(len(above), len(below))
    above, below = above[:count], below[:count]
    ratios = above / np.where(below == 0, np.nan, below)
    return ratio, _interval(ratios[np.isfinite(ratios)])


def _enough(depths: Sequence[float]) -> bool:
    return len(set(depths)) >= MINIMUM


def _resampled_slopes(
    depths: Sequence[float], values: Sequence[float], seed: int = 0
) -> np.ndarray:
    """Slopes over log D of resamples with at least two different depths."""
    x_N, y_N = np.log(np.asarray(depths, float)), np.asarray(values, float)
    rng = np.random.default_rng(seed)
    index_RN = rng.integers(0, len(x_N), size=(RESAMPLES, len(x_N)))
    x_RN, y_RN = x_N[index_RN], y_N[index_RN]
    centred_RN = x_RN - x_RN.mean(axis=1, keepdims=True)
    spread_R = np.sum(centred_RN**2, axis=1)
    usable_R = spread_R > 1e-12
    slopes: np.ndarray = np.sum(centred_RN * y_RN, axis=1)[usable_R] / spread_R[usable_R]
    return slopes


def _interval(samples: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(samples, [0.025, 0.975])
    return float(low), float(high)
