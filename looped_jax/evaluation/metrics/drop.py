"""DROP's metric (drop_eval.py): exact match and F1 of numbers, dates and lists of spans."""

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from looped_jax.evaluation.metrics.base import Record, Scored, Scores, means

_PUNCTUATION = str.maketrans("", "", string.punctuation)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def drop_normal(text: str) -> str:
    """DROP's normal form: words split at blanks and hyphens; each in lower case, as str(float)
    if it is a number, before or after its punctuation is deleted ("$5" -> "5.0"); no articles.

    So "-5" equals "5", and what Python reads as a float is one ("nan", "1e3").
    """
    words = []
    for word in re.split(" |-", text):
        word = word.lower()
        if not _is_number(word):
            word = word.translate(_PUNCTUATION)
        if _is_number(word):
            word = str(float(word))
        words.append(" ".join(re.sub(r"\b(a|an|the)\b", " ", word).split()))
    return " ".join(word for word in words if word)


def gold_spans(answer: Mapping[str, Any]) -> tuple[str, ...]:
    """The strings of a released answer: its number, else its spans, else its date."""
    if answer.get("number"):
        return (answer["number"],)
    if answer.get("spans"):
        return tuple(answer["spans"])
    date = answer.get("date") or {}
    return (" ".join(date.get(part) or "" for part in ("day", "month", "year")),)


def drop_score(prediction: Sequence[str], gold: Sequence[str]) -> tuple[float, float]:
    """(exact match, F1) of two lists of spans.

    Exact: equally many, and the same set of normal forms. F1: spans are paired one to one so that
    the sum of their F1 is largest, and the mean is over the longer list, rounded to two
    places. A pair's F1 is that of the *sets* of words, and 0 if the gold span has numbers and
    the predicted one has none of them.
    """
    from scipy.optimize import linear_sum_assignment  # A third of every command's start, up there.

    predicted_forms = [drop_normal(span) for span in prediction]
    gold_forms = [drop_normal(span) for span in gold]
    exact = len(predicted_forms) == len(gold_forms) and set(predicted_forms) == set(gold_forms)
    scores = np.array(
        [
            [_pair_f1(set(predicted.split()), set(golden.split())) for predicted in predicted_forms]
            for golden in gold_forms
        ]
    )
    rows, columns = linear_sum_assignment(-scores)
    mean = scores[rows, columns].sum() / max(len(gold_forms), len(predicted_forms))
    return float(exact), round(float(mean), 2)


def _pair_f1(predicted: set[str], gold: set[str]) -> float:
    numbers = {word for word in gold if _is_number(word)}
    if numbers and not numbers & predicted:
        return 0.0
    shared = len(predicted & gold)
    precision = shared / len(predicted) if predicted else 1.0
    recall = shared / len(gold) if gold else 1.0
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def drop(records: Sequence[Record]) -> Scored:
    """DROP: exact match and F1, each the best over all answers that are not blank.

    A record's `drop_answers` are the released answers (number, date, spans); without them each of
    `answers` is one span. A prediction is a list of spans, or a string for one span.
    """
    counts: Counter[str] = Counter()
    examples: list[Scores] = []
    for record in records:
        released = record.get("drop_answers")
        golds = (
            [gold_spans(answer) for answer in released]
            if released
            else [(answer,) for answer in record["answers"]]
        )
        golds = [gold for gold in golds if gold[0].strip()]
        if not golds:
            counts["examples_without_answers"] += 1
            examples.append({})
            continue
        prediction = record.get("prediction")
        if prediction is None:
            counts["missing_predictions"] += 1
            examples.append({"exact": 0.0, "f1": 0.0})
            continue
        spans = [prediction] if isinstance(prediction, str) else list(prediction) or [""]
        scored = [drop_score(spans, gold) for gold in golds]
        exact, f1 = (max(values) for values in zip(*scored, strict=True))
        examples.append({"exact": exact, "f1": f1})
    return Scored("f1", examples, means(examples), dict(counts))
