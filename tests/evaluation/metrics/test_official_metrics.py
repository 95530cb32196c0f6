"""The official metrics on cases worked by hand; each names the rule that decides it."""

import math
import string
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from looped_jax.data.tasks.downstream import TASKS
from looped_jax.errors import UserError
from looped_jax.evaluation.metrics import metric_of
from looped_jax.evaluation.metrics.answers import trivia_normal
from looped_jax.evaluation.metrics.dialogue import CANNOT_ANSWER, human_f1, quac_references
from looped_jax.evaluation.metrics.drop import drop_normal, drop_score, gold_spans
from looped_jax.evaluation.metrics.numbers import gold_number, numbers_in, predicted_number
from looped_jax.evaluation.metrics.text import (
    leave_one_out,
    squad_1_f1,
    squad_exact,
    squad_f1,
    squad_normal,
)

words = st.lists(st.sampled_from(["the", "cat", "a", "U.S.", "1,000", "café", "-", "CAT"]))
texts = words.map(" ".join)


def one(task: str, prediction: Any, answers: list, **fields: Any) -> dict[str, float]:
    record = {"prediction": prediction, "answers": answers, **fields}
    return metric_of(task)([record]).totals


# --- Normal forms ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The U.S.", "us"),  # Punctuation is deleted, not replaced.
        ("10-11", "1011"),
        ("An apple a day", "apple day"),
        ("Theatre", "theatre"),  # Articles are whole words.
        ("a.b", "ab"),  # Punctuation goes first, so this `a` is no article.
        ("“quoted”", "“quoted”"),  # Only ASCII punctuation.
        ("  Café\tNoir ", "café noir"),
        ("the", ""),
    ],
)
def test_squads_normal_form(text: str, normal: str) -> None:
    assert squad_normal(text) == normal


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("U.S.", "u s"),  # Punctuation becomes blanks.
        ("don't", "don t"),
        ("snake_case", "snake case"),
        ("‘From Here’", "from here"),  # These four quotation marks too.
        ("a.b", "b"),  # And so this `a` is an article.
    ],
)
def test_triviaqas_normal_form(text: str, normal: str) -> None:
    assert trivia_normal(text) == normal


@given(texts)
def test_normal_forms_are_stable(text: str) -> None:
    for normal in (squad_normal, trivia_normal):
        assert normal(normal(text)) == normal(text)
    assert drop_normal(drop_normal(text)) == drop_normal(text)


# --- Properties of F1 -----------------------------------------------------------------------


@given(texts, texts)
def test_f1_is_symmetric_and_bounded_and_one_for_equal_texts(a: str, b: str) -> None:
    for f1 in (squad_f1, squad_1_f1):
        assert f1(a, b) == pytest.approx(f1(b, a))
        assert 0 <= f1(a, b) <= 1
        assert squad_exact(a, b) <= squad_f1(a, b)
    assert squad_f1(a, a) == 1


@given(texts, st.sampled_from(string.punctuation), st.booleans())
def test_f1_does_not_see_case_punctuation_and_articles(text: str, mark: str, up: bool) -> None:
    changed = f" the  {text.upper() if up else text} {mark}"
    assert squad_normal(changed) == squad_normal(text)
    assert squad_f1(changed, text) == 1


@given(st.lists(texts, min_size=1, max_size=4), texts)
def test_leaving_one_out_never_gains(answers: list[str], prediction: str) -> None:
    left_out = leave_one_out(squad_f1, prediction, answers)
    assert 0 <= left_out <= max(squad_f1(prediction, a) for a in answers) + 1e-12


# --- Single questions -----------------------------------------------------------------------


def test_squad_v2_by_hand() -> None:
    # Bag F1: {cat, sat} of {cat, sat, down}: P 1, R 2/3, F1 0.8.
    assert one("squad_v2", "cat sat", ["the cat sat down"])["f1"] == pytest.approx(80)
    # Multisets: `to to` shares two with `to be or not to be`: P 1, R 2/6.
    assert one("squad_v2", "to to", ["to be or not to be"])["f1"] == pytest.approx(50)
    # The best answer counts, for each figure.
    assert one("squad_v2", "b c", ["a b c", "x"])["exact"] == 100  # `a` is an article.
    # Unanswerable: only the empty prediction is right.
    assert one("squad_v2", "", [])["f1"] == 100
    assert one("squad_v2", "something", []) == {
        **{"exact": 0, "f1": 0},
        **{"NoAns_exact": 0, "NoAns_f1": 0},
    }
    # An answer of punctuation alone is none: "" is right, but the question counts as HasAns.
    assert one("squad_v2", "", ["..."])["HasAns_exact"] == 100
    assert one("squad_v2", "the", ["x"])["f1"] == 0  # One side empty, the other not.


def test_squad_v2_totals_splits_and_thresholds() -> None:
    records = [
        {"prediction": "paris", "answers": ["Paris"], "no_answer_probability": 0.1},
        {"prediction": "rome", "answers": [], "no_answer_probability": 0.9},
        {"prediction": "x y", "answers": ["x"], "no_answer_probability": 0.2},
        {"answers": ["missing"], "no_answer_probability": 0.5},
    ]
    report = metric_of("squad_v2")(records)
    assert report.counts == {"missing_predictions": 1}
    assert report.totals["exact"] == pytest.approx(25)
    assert report.totals["f1"] == pytest.approx(100 * (1 + 2 / 3) / 4)
    assert report.totals["HasAns_exact"] == pytest.approx(100 / 3)
    assert report.totals["NoAns_exact"] == 0
    # Thresholds: answer nothing: 1 right of 4; answer the first: 2; the second: 2 2/3 (F1).
    assert report.totals["best_exact"] == pytest.approx(50)
    assert report.totals["best_f1"] == pytest.approx(100 * (2 + 2 / 3) / 4)


def test_tydiqa_gives_nothing_for_two_empty_texts() -> None:
    assert one("tydiqa_goldp", "the", ["a"]) == {"exact": 100, "f1": 0}
    assert one("tydiqa_nocontext", "7 May", ["7 May 1815", "May"])["f1"] == pytest.approx(80)


def test_triviaqa_by_hand() -> None:
    assert one("triviaqa", "james_jones", ["Jones, James", "James Jones"])["exact"] == 100
    # `u s` and `u s army`: P 1, R 2/3.
    assert one("triviaqa", "U.S.", ["U.S. Army"])["f1"] == pytest.approx(80)
    report = metric_of("triviaqa")([{"answers": ["a b"]}, {"prediction": "b", "answers": ["b"]}])
    assert report.totals["exact"] == 50  # A missing prediction is wrong.
    assert report.counts == {"missing_predictions": 1}


def test_open_domain_answers_keep_their_accents() -> None:
    for task in ("natural_questions", "web_questions"):
        assert one(task, "The Beatles!", ["beatles"])["exact"] == 100
        assert one(task, "cafe", ["Café"])["exact"] == 0
        # Composed and decomposed forms are the same.
        assert one(task, "caf\u00e9", ["cafe\u0301"])["exact"] == 100


# --- Conversations --------------------------------------------------------------------------


def test_coqa_leaves_each_persons_answer_out_in_turn() -> None:
    # Against [yes, yes, no] minus one each: best is 1 (yes left), 1, 1 -> 1.
    assert one("coqa", "yes", ["yes", "yes", "no"])["exact"] == 100
    # `no` against the same: leaving `no` out gives 0: (1 + 1 + 0) / 3.
    assert one("coqa", "no", ["yes", "yes", "no"])["exact"] == pytest.approx(200 / 3)
    # One answer: simply compared.
    assert one("coqa", "unknown", ["unknown"])["f1"] == 100
    # Both empty after normalising: 1 (SQuAD 2.0's rule).
    assert one("coqa", "the", ["a"])["f1"] == 100
    report = metric_of("coqa")(
        [
            {"prediction": "x", "answers": ["x"], "domain": "cnn"},
            {"answers": ["x"], "domain": "race"},
        ]
    )
    assert report.totals["f1"] == 50
    assert (report.totals["cnn/f1"], report.totals["race/f1"]) == (100, 0)


def test_quacs_references() -> None:
    span, cannot = "a span", CANNOT_ANSWER
    assert quac_references([span, cannot]) == [cannot]  # As many: CANNOTANSWER wins.
    assert quac_references([span, "other", cannot]) == [span, "other"]
    assert quac_references([cannot]) == [cannot]
    assert quac_references([span]) == [span]
    assert human_f1([span]) == 1
    # Pairs: f1(x y, x) = 2/3, z agrees with nobody: (2/3 + 2/3 + 0) / 3.
    assert human_f1(["x y", "x", "z"]) == pytest.approx(4 / 9)


def test_quac_by_hand() -> None:
    assert one("quac", "CANNOTANSWER", [CANNOT_ANSWER])["f1"] == 100
    assert one("quac", "cannotanswer", [CANNOT_ANSWER])["f1"] == 0  # To the letter.
    assert one("quac", "the", ["a"])["f1"] == 0  # Nothing shared, also where both are empty.
    # Leave one out: without `x y`: best of f1(x, x) = 1; without `x`: f1(x, x y) = 2/3.
    assert one("quac", "x", ["x y", "x"])["f1"] == pytest.approx(100 * (1 + 2 / 3) / 2)


def test_quac_leaves_out_what_persons_disagree_on() -> None:
    records = [
        # Persons agree fully, the model half: F1 of `x` and `x y` is 2/3.
        {"prediction": "x", "answers": ["x y", "x y"], "dialogue_id": "d"},
        # They disagree: left out of f1 and HEQ, not of unfiltered_f1.
        {"prediction": "p", "answers": ["p", "q"], "dialogue_id": "e"},
        {"prediction": "z", "answers": ["z"], "dialogue_id": "e"},
        {"answers": ["w"], "dialogue_id": "f"},
    ]
    report = metric_of("quac")(records)
    totals = report.totals
    assert totals["f1"] == pytest.approx(100 * (2 / 3 + 1 + 0) / 3)
    # `p` against q (p left out) and against p (q left out): 1/2.
    assert totals["unfiltered_f1"] == pytest.approx(100 * (2 / 3 + 1 / 2 + 1 + 0) / 4)
    assert totals["HEQ"] == pytest.approx(100 / 3)
    assert totals["DHEQ"] == pytest.approx(100 / 3)  # Only `e`.
    assert report.counts == {"low_agreement_left_out": 1, "missing_predictions": 1}


# --- DROP -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("7", "7.0"),
        ("1,000", "1000.0"),  # Punctuation goes, then it is a number.
        ("$5", "5.0"),
        ("3.50", "3.5"),  # A number keeps its point.
        ("-5", "5.0"),  # Hyphens separate words.
        ("the 10-yard line", "10.0 yard line"),
        ("1e3", "1000.0"),
        ("nan", "nan"),
        ("U.S.", "us"),
    ],
)
def test_drops_normal_form(text: str, normal: str) -> None:
    assert drop_normal(text) == normal


@pytest.mark.parametrize(
    ("prediction", "gold", "exact", "f1"),
    [
        (["7 yards"], ["7"], 0, 0.67),  # Sets {7.0, yards} and {7.0}: P 1/2, R 1, to two places.
        (["March 12, 1990"], ["12 March 1990"], 0, 1.0),  # The same set in another order.
        (["Brady 7"], ["Brady 8"], 0, 0.0),  # The gold's number is missing.
        (["Tom", "Tom"], ["Tom"], 0, 0.5),  # Equal sets, but two spans for one.
        (["Pakistanis and Filipinos"], ["Pakistanis", "Filipinos"], 0, 0.25),  # 1/2, over two.
        (["Filipinos", "Pakistanis"], ["Pakistanis", "Filipinos"], 1, 1.0),
        # `a` is an article. b to {b c} and {b c} to {c d}, 2/3 + 1/2, beats 0 + 1.
        (["a b", "b c"], ["b c", "c d"], 0, 0.58),
        ([""], ["x"], 0, 0.0),
        (["the"], ["a"], 1, 1.0),  # Both empty.
        (["5"], ["five"], 0, 0.0),
    ],
)
def test_drop_by_hand(prediction: list, gold: list, exact: float, f1: float) -> None:
    assert drop_score(prediction, gold) == (exact, f1)


def test_a_released_answer_is_its_number_else_its_spans_else_its_date() -> None:
    empty = {"day": "", "month": "", "year": ""}
    assert gold_spans({"number": "3", "date": empty, "spans": []}) == ("3",)
    assert gold_spans({"number": "", "date": empty, "spans": ["x", "y"]}) == ("x", "y")
    date = {"day": "", "month": "March", "year": "1990"}
    assert gold_spans({"number": "", "date": date, "spans": []}) == (" March 1990",)


def test_drop_takes_the_best_answer_for_each_figure_and_skips_blank_ones() -> None:
    def answer(*spans: str) -> dict:
        return {"number": "", "spans": list(spans), "date": {}}

    fields = {"drop_answers": [answer("x"), answer("x", "y"), answer(" ")]}
    assert one("drop", ["x", "y"], [], **fields) == {"exact": 100, "f1": 100}
    assert one("drop", "x y z", [], **fields) == {"exact": 0, "f1": 50}
    # Without the structure each answer is one span.
    assert one("drop", "12", ["12", "13"])["exact"] == 100
    report = metric_of("drop")([{"prediction": "x", "answers": [" "]}, {"answers": ["x"]}])
    assert report.counts == {"examples_without_answers": 1, "missing_predictions": 1}
    assert report.totals["f1"] == 0


@given(
    st.lists(texts, min_size=1, max_size=3),
    st.lists(texts, min_size=1, max_size=3),
)
def test_drop_is_bounded_and_full_for_equal_lists(prediction: list, gold: list) -> None:
    exact, f1 = drop_score(prediction, gold)
    assert exact in (0, 1) and 0 <= f1 <= 1
    assert drop_score(gold, list(reversed(gold))) == (1, 1.0)


# --- Numbers --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("1,234.50 dollars", ["1234.5"]),
        ("-7", ["-7"]),
        ("\u22127 degrees", ["-7"]),
        ("10-11", ["10", "11"]),  # A range, not a negative number.
        ("3/4 of it", ["3/4"]),
        ("1 1/2 cups", ["3/2"]),
        ("$.50", ["1/2"]),
        ("42.", ["42"]),
        ("3, 4 and 5", ["3", "4", "5"]),
        ("x2 v1.2.3", []),  # Names, not numbers.
        ("50%", ["50"]),
        ("12,345,678", ["12345678"]),
        ("none", []),
    ],
)
def test_numbers_are_found(text: str, numbers: list[str]) -> None:
    assert numbers_in(text) == [Fraction(n) for n in numbers]


def test_the_first_number_counts_or_the_one_after_the_answer_is() -> None:
    assert predicted_number("5 + 3 = 8") == 5
    assert predicted_number("5 + 3 = 8, so the answer is 8.") == 8
    assert predicted_number("Answer: 12 apples and 3 pears") == 12
    assert predicted_number("I do not know") is None


@pytest.mark.parametrize(
    ("answer", "number"),
    [
        ("4 (tickets)", "4"),
        ("124 (square meters)", "124"),
        ("0.5", "1/2"),
        ("3/4", "3/4"),
        ("18 km", "18"),
        ("25%", "25"),
        ("7:6", None),
        ("10:30 am", None),
        ("11; 24", None),
        ("Sally", None),
        ("-3", "-3"),
    ],
)
def test_an_answer_that_is_a_number_is_told_from_one_that_is_not(
    answer: str, number: str | None
) -> None:
    assert gold_number(answer) == (None if number is None else Fraction(number))


@pytest.mark.parametrize(
    ("prediction", "answer", "right"),
    [
        ("66,018 people", "66018", True),
        ("8.0", "8", True),
        ("8.0001", "8", True),  # Within 1e-4 of 8.
        ("8.01", "8", False),
        ("9", "8", False),
        ("0.3333", "1/3", True),
        ("-4", "4", False),
        ("7:6", "7:6 (ratio)", True),
        ("7:5", "7:6", False),
        ("sally", "Sally", True),
        ("nothing", "4", False),
    ],
)
def test_math_answers_by_hand(prediction: str, answer: str, right: bool) -> None:
    for task in ("asdiv", "svamp", "mawps_addsub"):
        assert one(task, prediction, [answer])["accuracy"] == 100 * right


def test_a_number_of_many_digits_is_a_number() -> None:
    digits = "7" * 5000  # More than int() reads.
    assert one("svamp", digits, [digits])["accuracy"] == 100
    assert one("svamp", f"{digits}/3", ["4"])["accuracy"] == 0


def test_a_question_without_a_dialogue_is_one_of_its_own() -> None:
    records = [
        {"prediction": "x", "answers": ["x"]},
        {"prediction": "x", "answers": ["x"]},
        {"prediction": "z", "answers": ["x"], "dialogue_id": "0"},
    ]
    assert metric_of("quac")(records).totals["DHEQ"] == pytest.approx(200 / 3)


def test_a_date_with_parts_that_are_null_is_one_of_the_others() -> None:
    answer = {"number": None, "spans": None, "date": {"day": None, "month": None, "year": "1990"}}
    assert one("drop", "1990", [], drop_answers=[answer])["exact"] == 100


def test_probabilities_that_some_records_lack_are_counted() -> None:
    records = [{"prediction": "x", "answers": ["x"], "no_answer_probability": 0.1}]
    report = metric_of("squad_v2")([*records, {"prediction": "x", "answers": ["x"]}])
    assert report.counts == {"lines_without_no_answer_probability": 1}
    assert "best_f1" not in report.totals


def test_what_is_odd_about_math_answers_is_counted() -> None:
    records = [
        {"prediction": "no idea", "answers": ["4"]},
        {"prediction": "4", "answers": ["Sally"]},
        {"answers": ["4"]},
        {"prediction": "4", "answers": []},
    ]
    report = metric_of("svamp")(records)
    assert report.counts == {
        "predictions_without_a_number": 1,
        "answers_not_a_number": 1,
        "missing_predictions": 1,
        "examples_without_answers": 1,
    }
    assert [bool(scores) for scores in report.examples] == [True, True, True, False]


@given(
    st.integers(-(10**7), 10**7), st.sampled_from(["{}", "{} apples", "The answer is {}.", "${}"])
)
def test_any_whole_number_is_read_back(number: int, form: str) -> None:
    for shown in (str(number), f"{number:,}"):
        if form.startswith("$") and number < 0:
            continue
        assert predicted_number(form.format(shown)) == number
        assert one("svamp", form.format(shown), [str(number)])["accuracy"] == 100


# --- All ------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
@given(st.lists(st.tuples(texts, st.lists(texts, min_size=1, max_size=3)), min_size=1, max_size=4))
def test_every_metric_is_bounded_and_scores_every_example(task: str, examples: list) -> None:
    records = [{"prediction": p, "answers": answers} for p, answers in examples]
    report = metric_of(task)(records)
    assert len(report.examples) == len(records)
    for value in report.totals.values():
        assert 0 <= value <= 100 and math.isfinite(value)
    shuffled = metric_of(task)(records[::-1]).totals
    assert {k: pytest.approx(v) for k, v in shuffled.items()} == report.totals


def test_tasks_are_known_by_name() -> None:
    assert metric_of("varassign_depth0_math")(
        [{"prediction": " 22", "answers": ["22"]}]
    ).totals == {"accuracy": 100}
    with pytest.raises(UserError, match="did you mean 'squad_v2'"):
        metric_of("squad_2")
