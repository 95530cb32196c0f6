"""Which source each row of a mixture is read from, at stated rates that may change.

While the rates stay the same, the rows read of a source after n rows differ from n x rate by less
than 1. For that, row j of a source of rate w (both from 0) has to be one of the mixture's rows
floor(j / w) to ceil((j + 1) / w) - 1; of the sources whose next row may come, the one whose row
must come soonest is read. That is earliest deadline first, with the windows of proportionate
fairness (Baruah, Cohen, Plaxton, Varvel 1996), which keeps every deadline where all rates add up to
1.

Rates are fractions with a common denominator Q, so the order repeats after Q rows: a table of them
says of any row, without those before it, which source it is of and which of its rows.

`grain.MapDataset.mix` finds any row too, but not at these rates: it cuts them to whole numbers of
which the smallest is 100 (0.7 and 0.3 become 233 and 100: one row too few in 3,330), its counts
are further off the more sources there are, and it takes neither a rate of 0 nor rates that change.
"""

import dataclasses
import functools
import heapq
import itertools
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction

import numpy as np

from looped_jax.errors import UserError, nearest

# Q at most: the table is made in a tenth of a second.
MOST_ROWS = 100_000
# By which rates may miss 1 in all.
_MISSED = 1e-6
# By which a fraction may differ from the rate that it stands for.
_ROUNDED = 1e-9

Rates = Mapping[str, float]  # Source -> rate; 0 to 1, and 1 in all.


def whole(rates: Rates, where: str = "config.data.rates") -> dict[str, int]:
    """The least whole numbers in the relation of these rates: rows of each source in Q rows, their
    sum. UserError for rates that are not 1 in all, or have no common denominator Q up to
    MOST_ROWS."""
    total = math.fsum(rates.values())
    shown = ", ".join(f"{name} {rate}" for name, rate in rates.items())
    if abs(total - 1) > _MISSED:
        raise UserError(f"{where}: {shown} are {total:.7g} in all; they must be 1")
    parts = {name: Fraction(rate).limit_denominator(MOST_ROWS) for name, rate in rates.items()}
    rows = math.lcm(*(part.denominator for part in parts.values()))
    off = max(abs(float(part) - rates[name]) for name, part in parts.items())
    if rows > MOST_ROWS or off > max(_ROUNDED, abs(total - 1)) or sum(parts.values()) != 1:
        raise UserError(
            f"{where}: {shown} are not whole numbers of at most {MOST_ROWS:,} rows; "
            f"five decimals are: {_five_decimals(rates)}"
        )
    return {name: int(part * rows) for name, part in parts.items()}


def _five_decimals(rates: Rates) -> str:
    """The rates cut to five decimals, with what is then missing where most was cut off."""
    cut = {name: math.floor(rate * MOST_ROWS) for name, rate in rates.items()}
    missing = MOST_ROWS - sum(cut.values())
    by_loss = sorted(rates, key=lambda name: cut[name] - rates[name] * MOST_ROWS)
    for name in by_loss[:missing]:
        cut[name] += 1
    return ", ".join(f"{name} {rows / MOST_ROWS:.5f}" for name, rows in cut.items())


@dataclasses.dataclass(frozen=True)
class Turns:
    """The order of sources at rates that stay the same; S sources, numbered, in periods of Q rows.

    rows_S: int64, rows of each in a period; source_Q: int16, the source of each row of a period;
    earlier_Q: int64, how many rows of the same source come before it there.
    """

    rows_S: np.ndarray
    source_Q: np.ndarray
    earlier_Q: np.ndarray

    @classmethod
    @functools.lru_cache(maxsize=64)
    def of(cls, rows: tuple[int, ...]) -> "Turns":
        """At rates that these whole numbers are in the relation of."""
        period = sum(rows)
        source_Q, earlier_Q = np.zeros(period, np.int16), np.zeros(period, np.int64)
        waiting = [(0, source, 0) for source, count in enumerate(rows) if count]  # Since which row.
        ready: list[tuple[int, int, int]] = []  # Before which row.
        for row in range(period):
            while waiting and waiting[0][0] <= row:
                _, source, number = heapq.heappop(waiting)
                deadline = -(-(number + 1) * period // rows[source])
                heapq.heappush(ready, (deadline, source, number))
            _, source, number = heapq.heappop(ready)
            source_Q[row], earlier_Q[row] = source, number
            if number + 1 < rows[source]:
                begins = (number + 1) * period // rows[source]
                heapq.heappush(waiting, (begins, source, number + 1))
        return cls(np.array(rows, np.int64), source_Q, earlier_Q)

    def at(self, rows_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(source_N, number_N): of these rows the sources, and which row of its source each is,
        counted from 0."""
        periods_N, within_N = np.divmod(rows_N, len(self.source_Q))
        source_N = self.source_Q[within_N]
        return source_N, periods_N * self.rows_S[source_N] + self.earlier_Q[within_N]

    def counts(self, rows: int) -> np.ndarray:
        """int64 [S]: rows of each source among the first ``rows``."""
        periods, within = divmod(rows, len(self.source_Q))
        begun = np.bincount(self.source_Q[:within], minlength=len(self.rows_S))
        return periods * self.rows_S + begun


# (first row, rates from there on), in order, from row 0.
Parts = Sequence[tuple[int, Rates]]


class Schedule:
    """The order of sources over parts with rates of their own. Sources are numbered in the order of
    their names; a source goes on in a part where it was in the one before."""

    def __init__(self, parts: Parts):
        self.parts = tuple(parts)
        self.names = tuple(sorted(parts[0][1]))
        self._first_P = np.array([first for first, _ in parts], np.int64)
        whole_numbers = [whole(rates) for _, rates in parts]
        self._turns = [Turns.of(tuple(rows[name] for name in self.names)) for rows in whole_numbers]
        before_P = [np.zeros(len(self.names), np.int64)]
        for turns, rows in zip(self._turns, np.diff(self._first_P), strict=False):
            before_P.append(before_P[-1] + turns.counts(int(rows)))
        self._before_PS = np.stack(before_P)

    def at(self, rows_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(source_N, number_N) of rows of the mixture, see Turns."""
        rows_N = np.asarray(rows_N, np.int64)
        part_N = np.searchsorted(self._first_P, rows_N, side="right") - 1
        source_N, number_N = np.zeros(len(rows_N), np.int16), np.zeros(len(rows_N), np.int64)
        for part in np.unique(part_N):
            own = part_N == part
            source, number = self._turns[part].at(rows_N[own] - self._first_P[part])
            source_N[own], number_N[own] = source, number + self._before_PS[part, source]
        return source_N, number_N

    def counts(self, row: int) -> dict[str, int]:
        """Source -> how many of its rows come before this row of the mixture."""
        part = int(np.searchsorted(self._first_P, row, side="right")) - 1
        within = self._turns[part].counts(row - int(self._first_P[part]))
        counts = self._before_PS[part] + within
        return {name: int(count) for name, count in zip(self.names, counts, strict=True)}


def stated(rates: Sequence[tuple[int, Sequence[tuple[str, float]]]], names: Sequence[str]) -> Parts:
    """config.data.rates as (step, rates) from step 0 on; one source needs none.

    UserError if the first is not of step 0, steps do not rise, names are not those of the sources,
    or as ``whole``.
    """
    if not rates and len(names) == 1:
        return [(0, {names[0]: 1.0})]
    if not rates:
        raise UserError(
            "config.data.rates must say how much is read of each of config.data.sources, e.g. "
            + repr(((0, tuple((name, round(1 / len(names), 5)) for name in names)),))
        )
    steps = [step for step, _ in rates]
    if steps[0] != 0:
        raise UserError(f"config.data.rates begin at step {steps[0]}; the first are of step 0")
    for before, step in itertools.pairwise(steps):
        if step <= before:
            raise UserError(f"config.data.rates: step {step} comes after step {before}")
    for step, own in rates:
        where = f"config.data.rates, from step {step}"
        given = [name for name, _ in own]
        for name in given:
            if name not in names:
                raise UserError(
                    f"{where}: {name!r} is not one of config.data.sources ({', '.join(names)})"
                    + nearest(name, names)
                )
        for name in names:
            if given.count(name) != 1:
                raise UserError(
                    f"{where}: {name!r} must be there once, with 0 where nothing is read of it; it "
                    f"is there {given.count(name)} times"
                )
        whole(dict(own), where)
    return [(step, dict(own)) for step, own in rates]


def planned(
    by_step: Parts, batch_size: int, past: Parts = (), row: int = 0, step: int = 0
) -> Parts:
    """What a run reads that has read ``row`` rows at ``step``, with ``past`` its parts until then:
    from there on as ``by_step``, with ``batch_size`` rows a step. Equal rates go on in one part."""
    parts = [part for part in past if part[0] < row]
    in_force = [rates for first, rates in by_step if first <= step][-1]
    later = [(row + (first - step) * batch_size, rates) for first, rates in by_step if first > step]
    for first, rates in [(row, in_force), *later]:
        if not parts or whole(parts[-1][1]) != whole(rates):
            parts.append((first, rates))
    return parts
