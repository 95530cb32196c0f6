"""How far a figure can be trusted: 95% intervals over what was drawn, not over tokens."""

import numpy as np

SAMPLES = 1000
# Fewer have no interval worth the name.
MINIMUM = 3


def ratio_interval(sums: np.ndarray, counts: np.ndarray, seed: int = 0) -> tuple[float, float]:
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
