"""The order in which rows that end are read: shuffled anew for every epoch."""

from collections.abc import Callable

import grain


def shuffled(num_rows: int, seed: int) -> Callable[[int], int]:
    """Place in the order, from 0 and without end -> the row that is read there. Any place is found
    without those before it."""
    order = grain.MapDataset.range(num_rows).seed(seed).shuffle().repeat()
    return order.__getitem__
