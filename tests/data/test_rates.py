"""Which source each row is of: exact counts, found at any row, over changes of the rates."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from looped_jax.data.rates import MOST_ROWS, Schedule, planned, stated, whole
from looped_jax.errors import UserError

WEB_AND_CODE = {"web": 0.7, "code": 0.3}
NAMES = "abcdefghij"


@st.composite
def some_rates(draw: st.DrawFn, sources: int) -> dict[str, float]:
    """Rates of whole numbers of rows, some of them 0."""
    rows = st.lists(st.integers(0, 60), min_size=sources, max_size=sources)
    numbers = draw(rows.filter(any))
    total = sum(numbers)
    return {name: n / total for name, n in zip(NAMES[:sources], numbers, strict=True)}


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    """Up to ten sources, up to four parts."""
    sources = draw(st.integers(1, 10))
    lengths = draw(st.lists(st.integers(1, 150), max_size=3))
    firsts = np.cumsum([0, *lengths])
    return Schedule([(int(first), draw(some_rates(sources))) for first in firsts])


@settings(max_examples=150)
@given(schedules())
def test_counts_are_within_one_of_the_rates_all_through_each_part(schedule: Schedule) -> None:
    source_N, _ = schedule.at(np.arange(700))
    firsts = [first for first, _ in schedule.parts]
    for (first, rates), end in zip(schedule.parts, [*firsts[1:], 700], strict=True):
        rate_S = np.array([rates[name] for name in schedule.names])
        read_NS = source_N[first:end, None] == np.arange(len(rate_S))
        rows_N = np.arange(1, end - first + 1)
        off_NS = np.cumsum(read_NS, axis=0) - rows_N[:, None] * rate_S
        assert np.abs(off_NS).max() < 1 - 1e-9
        assert not read_NS[:, rate_S == 0].any()


@given(schedules())
def test_each_source_is_read_row_by_row_over_all_changes(schedule: Schedule) -> None:
    source_N, number_N = schedule.at(np.arange(600))
    for source, name in enumerate(schedule.names):
        own = number_N[source_N == source]
        np.testing.assert_array_equal(own, np.arange(len(own)))
        assert schedule.counts(600)[name] == len(own)


@given(schedules(), st.lists(st.integers(0, 10**6), min_size=1, max_size=40))
def test_a_row_does_not_depend_on_those_it_is_asked_with(
    schedule: Schedule, rows: list[int]
) -> None:
    together = np.stack(schedule.at(np.array(rows)))
    alone = np.concatenate([np.stack(schedule.at(np.array([row]))) for row in rows], axis=1)
    np.testing.assert_array_equal(together, alone)


@pytest.mark.parametrize(
    "rates",
    [
        WEB_AND_CODE,
        {"a": 0.31278, "b": 0.22722, "c": 0.46},
        {name: 1 / 7 for name in NAMES[:7]},
        {"a": 0.99999, "b": 0.00001},
    ],
)
def test_row_a_thousand_million_is_found_at_once_and_exactly(rates: dict[str, float]) -> None:
    row = 10**9 + 12_345
    begin = time.perf_counter()
    schedule = Schedule([(0, rates)])
    source, number = schedule.at(np.array([row]))
    counts = schedule.counts(row)
    assert time.perf_counter() - begin < 1.0
    assert sum(counts.values()) == row
    assert number[0] == counts[schedule.names[source[0]]]
    for name, count in counts.items():
        assert abs(count - row * rates[name]) < 1


def test_rates_are_the_least_whole_numbers() -> None:
    assert whole(WEB_AND_CODE) == {"web": 7, "code": 3}
    assert whole({"a": 1 / 3, "b": 1 / 3, "c": 1 / 3}) == {"a": 1, "b": 1, "c": 1}
    assert whole({"a": 0.25, "b": 0.75, "c": 0.0}) == {"a": 1, "b": 3, "c": 0}
    assert sum(whole({"a": 0.31279, "b": 0.22721, "c": 0.46}).values()) == MOST_ROWS


def test_the_order_of_the_sources_in_the_config_does_not_matter() -> None:
    turned = dict(reversed(WEB_AND_CODE.items()))
    one, other = (Schedule([(0, rates)]).at(np.arange(100)) for rates in (WEB_AND_CODE, turned))
    np.testing.assert_array_equal(one, other)


BY_STEP = [(0, WEB_AND_CODE), (10, {"web": 0.5, "code": 0.5})]


def test_a_change_comes_at_its_step() -> None:
    assert planned(BY_STEP, batch_size=16) == [(0, BY_STEP[0][1]), (160, BY_STEP[1][1])]


def test_a_run_with_another_batch_size_goes_on_in_the_same_order() -> None:
    whole_run = Schedule(planned(BY_STEP, batch_size=16))
    goes_on = Schedule(planned(BY_STEP, 8, past=whole_run.parts, row=48, step=3))
    assert goes_on.parts == ((0, BY_STEP[0][1]), (48 + 7 * 8, BY_STEP[1][1]))
    for part in zip(goes_on.at(np.arange(104)), whole_run.at(np.arange(104)), strict=True):
        np.testing.assert_array_equal(*part)


def test_other_rates_from_a_checkpoint_on_leave_alone_what_was_read() -> None:
    past = planned(BY_STEP, batch_size=16)
    other = [(0, {"web": 0.1, "code": 0.9})]
    assert planned(other, 16, past, row=48, step=3) == [past[0], (48, other[0][1])]
    assert planned(other, 16, past, row=160, step=10) == [past[0], (160, other[0][1])]
    assert planned(other, 16, past, row=176, step=11) == [*past, (176, other[0][1])]


def test_one_source_needs_no_rates() -> None:
    assert stated((), ["web"]) == [(0, {"web": 1.0})]


def at(step: int, **rates: float) -> tuple[int, Any]:
    return (step, tuple(rates.items()))


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ((), r"must say how much is read of each of config.data.sources, e.g. \(\(0, \(\('code'"),
        ((at(5, web=1, code=0),), "begin at step 5; the first are of step 0"),
        ((at(0, web=1, code=0), at(0, web=0, code=1)), "step 0 comes after step 0"),
        ((at(0, web=0.7, cod=0.3),), r"'cod' is not one of .*\(code, web\); did you mean 'code'"),
        ((at(0, web=1.0),), "from step 0: 'code' must be there once, with 0 where"),
        ((at(0, web=0.5, code=0.5), at(9, web=0.7, code=0.4)), "from step 9: .* 1.1 in all"),
        ((at(0, web=0.7, code=0.299),), "0.999 in all; they must be 1"),
    ],
)
def test_rates_that_cannot_be_are_named(rates: Sequence[Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        stated(rates, ["code", "web"])


def test_rates_of_too_many_decimals_are_told_those_that_would_do() -> None:
    three = {"a": 0.3127845, "b": 0.2872155, "c": 0.4}
    with pytest.raises(UserError, match=r"five decimals are: a 0\.31278, b 0\.28722, c 0\.40000"):
        whole(three)
