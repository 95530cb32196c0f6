"""How many loops are drawn at most, and how often many or few: what config.counts is checked by.

The distributions are those of training/loop_counts.py, of mean M.
"""

import numpy as np

# Draws that are fewer than this share of all are none.
RARE = 1e-3
DEVIATION = 0.5  # s, of a lognormal Poisson's tau.
_POINTS = 10_000


def bound(distribution: str, mean: int) -> int | None:
    """The largest count; None where there is none."""
    return {"fixed": mean, "uniform": 2 * mean - 1}.get(distribution)


def share_of_at_least(distribution: str, mean: int, count: int) -> float:
    """P(r >= count), 0 to 1."""
    if count <= 1:
        return 1.0
    if distribution == "fixed":
        return float(count <= mean)
    if distribution == "uniform":
        return max(0.0, (2 * mean - count) / (2 * mean - 1))
    from scipy import special  # Not up there: half a second of every command's start.

    # P(Poisson(x) >= n) is the regularised incomplete gamma function P(n, x), n >= 1.
    if distribution == "poisson":
        return float(special.gammainc(count, mean))
    middle = np.log(mean) - DEVIATION**2 / 2
    # The mean over a normal variable, by its quantiles at equal steps of probability.
    normal = special.ndtri((np.arange(_POINTS) + 0.5) / _POINTS)
    return float(np.mean(special.gammainc(count - 1, np.exp(middle + DEVIATION * normal))))


def reached(distribution: str, mean: int) -> int:
    """The least count that fewer than RARE of all draws reach; the bound, where there is one."""
    if (most := bound(distribution, mean)) is not None:
        return most
    low, high = 1, 2
    while share_of_at_least(distribution, mean, high) >= RARE:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if share_of_at_least(distribution, mean, middle) >= RARE:
            low = middle
        else:
            high = middle
    return high
