"""The paper's tables as data, and what is wrong in them."""

import pytest

from looped_jax.analysis import published
from looped_jax.models.loop_plan import LoopPlan


def test_every_printed_gap_but_one_follows_from_the_printed_averages() -> None:
    gaps = published.printed_gaps()
    assert len(gaps) == 5 * 6  # Five looped models, six columns of table 3.
    (wrong,) = [gap for gap in gaps if not gap.agrees]
    assert (wrong.model, wrong.metric) == ("middle-4x1-4x4-4x1", "all_tasks")
    # (25.0 - 21.8) / (26.0 - 21.8), printed as 95.
    assert (wrong.printed, wrong.recomputed) == (95, pytest.approx(100 * 3.2 / 4.2))


@pytest.mark.parametrize("group", ["closed_book_qa", "open_book_qa", "math_word_problems"])
def test_group_averages_of_the_first_tables_are_those_of_the_detailed_ones(group: str) -> None:
    detailed = published.table(group)
    for model, row in published.table("lm_groups").items():
        if model in detailed and group in row:
            assert row[group] == pytest.approx(detailed[model]["average"], abs=0.051), model


def test_numbers_are_found_by_task_and_plan() -> None:
    assert published.find("phop_p16_n256", LoopPlan.parse("1x6")) == 99.9
    assert published.find("addition_n8", LoopPlan.parse("2x1")) == 85.8
    assert published.find("igsm", LoopPlan.parse("1x1")) == 24.5
    assert published.find("phop_p2_n16", LoopPlan.parse("1x6")) is None
    assert published.find("group_s3_n7", LoopPlan.parse("1x6")) is None
    assert published.find("igsm", LoopPlan.parse("7x1")) is None
