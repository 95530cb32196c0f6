"""The table of metrics: direction, unit, form and noise of a number by its name."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from looped_jax.data.tasks import get_task, task_names
from looped_jax.evaluation.metric_table import Metric, clear_gain, shown_evaluation, text_parts

ACCURACY = Metric("eval/group_z7_n4/accuracy")
PERPLEXITY = Metric("eval/text/perplexity")
LOSS = Metric("eval/text/loss")


@pytest.mark.parametrize(
    ("name", "higher", "shown", "heading"),
    [
        ("eval/phop_p2_n16/accuracy", True, "12.5%", "phop_p2_n16 (%)"),
        ("eval/text/perplexity", False, "0.125", "text perplexity"),
        ("eval/text/loss", False, "0.1250", "text loss"),
        ("eval/text/ArXiv/bits_per_byte", False, "0.125", "text ArXiv bits_per_byte"),
        ("eval/drop/f1", True, "12.5%", "drop f1 (%)"),
        ("group/open_book_qa", True, "12.5%", "open book qa (%)"),
        ("eval/text/perplexity_low", None, "0.125", "text perplexity_low"),
        ("perf/mfu", None, "0.125", "perf/mfu"),
    ],
)
def test_a_metric_is_known_by_its_name(
    name: str, higher: bool | None, shown: str, heading: str
) -> None:
    metric = Metric(name)
    assert metric.kind.higher_is_better is higher
    assert metric.with_unit(0.125) == shown
    assert metric.heading == heading


def test_what_has_no_better_and_worse_judges_nothing() -> None:
    with pytest.raises(ValueError, match="no better and worse"):
        Metric("eval/text/tokens").gain(1, 2)


@given(st.floats(0.01, 100), st.floats(0.01, 100))
def test_a_gain_is_a_loss_seen_from_the_other_side(a: float, b: float) -> None:
    for metric in (ACCURACY, PERPLEXITY, LOSS):
        assert metric.gain(a, b) == -metric.gain(b, a)
    assert (PERPLEXITY.gain(a, b) > 0) == (a < b)
    assert (ACCURACY.gain(a, b) > 0) == (a > b)


def test_perplexities_of_seeds_average_as_their_losses_do() -> None:
    losses = [1.0, 2.0, 4.0]
    mean = PERPLEXITY.average([math.exp(x) for x in losses])
    assert math.log(mean) == pytest.approx(LOSS.average(losses))


@given(st.integers(1, 10_000), st.floats(0, 1))
def test_the_noise_of_an_accuracy_holds_it_and_shrinks_with_examples(n: int, share: float) -> None:
    value = round(share * n) / n
    low, high = ACCURACY.noise({ACCURACY.name: value}, n) or (1.0, 0.0)
    assert 0 <= low <= value <= high <= 1
    assert low < high  # Also where every answer is right.
    more = ACCURACY.noise({ACCURACY.name: value}, 4 * n) or (0.0, 1.0)
    assert more[1] - more[0] < high - low


def test_the_noise_of_a_text_is_its_interval_and_of_its_loss_the_logarithm() -> None:
    line = {PERPLEXITY.name: 8.0, LOSS.name: math.log(8.0)}
    assert PERPLEXITY.noise(line, 100) is None
    line |= {"eval/text/perplexity_low": 7.0, "eval/text/perplexity_high": 9.0}
    assert PERPLEXITY.noise(line, None) == (7.0, 9.0)
    assert LOSS.noise(line, None) == pytest.approx((math.log(7), math.log(9)))


def test_a_gain_is_clear_when_it_is_beyond_the_noise_of_both() -> None:
    def accuracy(value: float, n: int) -> tuple[float, tuple[float, float] | None]:
        return value, ACCURACY.noise({ACCURACY.name: value}, n)

    assert clear_gain(ACCURACY, accuracy(0.6, 1000), accuracy(0.5, 1000))
    assert not clear_gain(ACCURACY, accuracy(0.6, 30), accuracy(0.5, 30))
    assert not clear_gain(ACCURACY, accuracy(0.5, 1000), accuracy(0.6, 1000))
    assert clear_gain(PERPLEXITY, (7.0, (6.9, 7.1)), (7.5, (7.4, 7.6)))
    assert not clear_gain(PERPLEXITY, (7.0, (6.4, 7.6)), (7.5, (6.9, 8.1)))
    # Where nothing is known of the noise, what counts as equal is none.
    assert not clear_gain(PERPLEXITY, (7.46, None), (7.5, None))
    assert clear_gain(PERPLEXITY, (7.0, None), (7.5, None))


def test_chance_is_known_of_tasks_with_a_fixed_set_of_answers() -> None:
    assert ACCURACY.chance == pytest.approx(1 / 7)
    assert Metric("eval/text/loss").chance is None
    assert Metric("eval/no_such_task/accuracy").chance is None
    for name in task_names():
        chance = get_task(name).chance
        assert chance is None or 0 < chance < 1, name


def test_an_evaluation_in_words_has_what_is_judged_and_nothing_else() -> None:
    line = {"step": 4, "eval/igsm/accuracy": 0.5, "eval/igsm/loss": 1.0}
    assert shown_evaluation(line) == "igsm 50.0%"
    text = {"eval/text/perplexity": 8.0, "eval/text/ArXiv/perplexity": 3.0, "eval/text/tokens": 9.0}
    assert shown_evaluation(text) == "text perplexity 8.000"
    assert text_parts(text, "perplexity") == [
        "eval/text/perplexity",
        "eval/text/ArXiv/perplexity",
    ]


def test_a_task_without_headline_is_judged_by_what_has_an_interval() -> None:
    ends = {"eval/drop/f1_low": 0.2, "eval/drop/f1_high": 0.4}
    line = {"eval/drop/exact": 0.25, "eval/drop/f1": 0.3, **ends, "eval/svamp/accuracy": 0.5}
    assert shown_evaluation(line) == "drop f1 30.0%, svamp 50.0%"
    assert shown_evaluation({"eval/text/tokens": 5.0, "train/loss": 1.0}) == ""
