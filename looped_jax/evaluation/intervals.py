"""How far a figure can be trusted: 95% intervals over what was drawn, not over tokens."""

import math
import statistics
from collections.abc import Hashable, Sequence

import numpy as np

# Both ends of a 95% interval.
Interval = tuple[float, float]
Z_95 = statistics.NormalDist().inv_cdf(0.975)
SAMPLES = 1000
# Fewer have no interval worth the name.
MINIMUM = 3


def ratio_interval(sums: np.ndarray, counts: np.ndarray, seed: int = 0) -> Interval:
    """The middle 95% of sum(sums) / sum(counts) over SAMPLES resamples of the units (documents,
    dialogues) that these sums and counts are of; (nan, nan) for fewer than MINIMUM units."""
    units = len(sums)
    if units < MINIMUM:
        return (float("nan"), float("nan"))
    rng = np.random.default_rng(seed)
    # How often each unit is in a resample; in parts, so that many units fit in memory.
    both = np.stack([sums, counts], axis=1)
    parts = [rng.multinomial(units, np.full(units, 1 / units), size=100) @ both for _ in range(10)]
    total, count = np.concatenate(parts).T
    low, high = np.percentile(total / count, [2.5, 97.5])
    return (float(low), float(high))


def binomial_interval(share: float, examples: int) -> Interval:
    """Wilson's interval (1927) of a share of so many examples: never of no width."""
    square = Z_95**2 / examples
    middle = (share + square / 2) / (1 + square)
    half = Z_95 * math.sqrt(share * (1 - share) / examples + square / (4 * examples)) / (1 + square)
    return max(0.0, min(middle - half, share)), min(1.0, max(middle + half, share))


def mean_interval(scores: Sequence[float], units: Sequence[Hashable]) -> Interval | None:
    """The 95% interval of the mean of scores (0 to 1), of which those with an equal unit (turns of
    one dialogue) were drawn together: by ratio_interval over units.

    Resampling says nothing where every score is 0 or every score is 1; there it is the
    binomial_interval of as many draws as units. None for fewer than MINIMUM units of other scores.
    """
    index = {unit: i for i, unit in enumerate(dict.fromkeys(units))}
    which = [index[unit] for unit in units]
    if scores and all(score == scores[0] for score in scores) and scores[0] in (0, 1):
        return binomial_interval(scores[0], len(index))
    if len(index) < MINIMUM:
        return None
    return ratio_interval(np.bincount(which, weights=scores), np.bincount(which))
