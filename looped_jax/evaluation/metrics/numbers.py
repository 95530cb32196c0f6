"""Math word problems: the number in an answer, and whether it is the right one."""

import re
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction

from looped_jax.evaluation.metrics.base import Record, Scored, Scores, mean_scored
from looped_jax.evaluation.metrics.text import squad_normal

# Answers that are not whole agree within this share of the right one.
RELATIVE_TOLERANCE = 1e-4

# 1 1/2 | 3/4 | 1,234.5 | .5, with a sign that does not belong to something before it ("10-11").
_NUMBER = re.compile(
    r"""(?<![\w.,])(?P<sign>-\s?)?\$?
    (?: (?P<whole>\d+)\s+(?P<numerator>\d+)\s?/\s?(?P<denominator>[1-9]\d*)
      | (?P<above>\d+)\s?/\s?(?P<below>[1-9]\d*)
      | (?P<decimal>\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)
    )""",
    re.VERBOSE,
)
_TRIGGER = re.compile(r"answer\s*(?:is|:|=)", re.IGNORECASE)


def numbers_in(text: str) -> list[Fraction]:
    """All numbers of a text, exactly: with thousands' commas, signs, decimals, fractions."""
    found = []
    for match in _NUMBER.finditer(text.replace("\u2212", "-")):
        part = match.groupdict()
        if part["decimal"]:
            value = _exact(part["decimal"].replace(",", ""))
        elif part["above"]:
            value = _exact(part["above"]) / _exact(part["below"])
        else:
            value = _exact(part["numerator"]) / _exact(part["denominator"]) + _exact(part["whole"])
        found.append(-value if part["sign"] else value)
    return found


def _exact(digits: str) -> Fraction:
    """By way of Decimal, as int() and Fraction() read no more than 4,300 digits."""
    return Fraction(Decimal(digits))


def predicted_number(text: str) -> Fraction | None:
    """The first number of a prediction, or the first after "answer is" where it says so."""
    triggers = list(_TRIGGER.finditer(text))
    if triggers and (after := numbers_in(text[triggers[-1].end() :])):
        return after[0]
    found = numbers_in(text)
    return found[0] if found else None


def _without_unit(answer: str) -> str:
    return re.sub(r"\(.*\)", "", answer).strip()


def gold_number(answer: str) -> Fraction | None:
    """The number that an answer is, its unit in brackets or behind a blank left out; None for
    ratios, times, names and lists."""
    bare = _without_unit(answer)
    match = _NUMBER.match(bare.replace("\u2212", "-"))
    if match is None or not re.fullmatch(r"%?\s*([^\W\d].*)?", bare[match.end() :]):
        return None
    return numbers_in(bare)[0]


def numbers_agree(prediction: Fraction, answer: Fraction) -> bool:
    """Equal; where either is not whole, within RELATIVE_TOLERANCE of the answer."""
    if prediction.denominator == answer.denominator == 1:
        return prediction == answer
    return abs(prediction - answer) <= RELATIVE_TOLERANCE * abs(answer)


def math_problems(records: Sequence[Record]) -> Scored:
    """Accuracy: the first number of the prediction is the answer's. An answer that is not one
    number is compared by SQuAD's normal form, and counted as such."""
    counts: Counter[str] = Counter()

    def score(prediction: str, answers: list[str]) -> Scores:
        number = predicted_number(prediction)
        golds = [gold_number(answer) for answer in answers]
        counts["predictions_without_a_number"] += number is None
        counts["answers_not_a_number"] += all(gold is None for gold in golds)
        right = any(
            squad_normal(prediction) == squad_normal(_without_unit(answer))
            if gold is None
            else number is not None and numbers_agree(number, gold)
            for answer, gold in zip(answers, golds, strict=True)
        )
        return {"accuracy": float(right)}

    scored = mean_scored(records, score, "accuracy", {"accuracy": 0.0})
    scored.counts.update({name: count for name, count in counts.items() if count})
    return scored
