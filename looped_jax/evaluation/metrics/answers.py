"""Metrics of single questions: SQuAD 2.0, TyDiQA, TriviaQA, NQ-open, WebQuestions, exact match."""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence

from looped_jax.evaluation.metrics.base import (
    Record,
    Scored,
    Scores,
    mean_scored,
    means,
    prediction_of,
)
from looped_jax.evaluation.metrics.text import (
    best,
    overlap_f1,
    squad_1_f1,
    squad_exact,
    squad_f1,
    squad_normal,
)

_TRIVIA_PUNCTUATION = str.maketrans({c: " " for c in string.punctuation + "‘’´`"})


def squad_v2(records: Sequence[Record]) -> Scored:
    """SQuAD 2.0 (evaluate-v2.0.py): exact and F1, over all questions, those with an answer
    (`HasAns_`) and those without (`NoAns_`).

    Answers whose normal form is empty do not count as answers; where none is left the right
    prediction is "". A missing prediction scores 0 (the official script leaves it out of the
    overall figures and then fails). With a `no_answer_probability` in every record also the
    best figures over all thresholds on it (`best_exact`, `best_f1`).
    """
    counts: Counter[str] = Counter()
    examples: list[Scores] = []
    for record in records:
        answers = [answer for answer in record["answers"] if squad_normal(answer)] or [""]
        prediction = prediction_of(record, counts)
        scores = {"exact": 0.0, "f1": 0.0}
        if prediction is not None:
            scores["exact"] = best(squad_exact, prediction, answers)
            scores["f1"] = best(squad_f1, prediction, answers)
        kind = "HasAns" if record["answers"] else "NoAns"
        examples.append({**scores, **{f"{kind}_{name}": v for name, v in scores.items()}})
    totals = means(examples)
    without = sum(record.get("no_answer_probability") is None for record in records)
    if 0 < without < len(records):
        counts["lines_without_no_answer_probability"] = without
    elif records and not without:
        for name in ("exact", "f1"):
            totals[f"best_{name}"] = _best_over_thresholds(records, [e[name] for e in examples])
    return Scored("f1", examples, totals, dict(counts))


def _best_over_thresholds(records: Sequence[Record], scores: list[float]) -> float:
    """The best mean score if every question above some no-answer probability is answered ""."""
    current = top = float(sum(not record["answers"] for record in records))
    order = sorted(range(len(records)), key=lambda i: records[i]["no_answer_probability"])
    for i in order:
        if records[i]["answers"]:
            current += scores[i]
        elif records[i].get("prediction"):
            current -= 1
        top = max(top, current)
    return 100 * top / len(records)


def tydiqa(records: Sequence[Record]) -> Scored:
    """TyDiQA-GoldP: SQuAD 1.1's exact match and F1, the best over the answers."""

    def score(prediction: str, answers: list[str]) -> Scores:
        return {
            "exact": best(squad_exact, prediction, answers),
            "f1": best(squad_1_f1, prediction, answers),
        }

    return mean_scored(records, score, "f1", {"exact": 0.0, "f1": 0.0})


def trivia_normal(text: str) -> str:
    """TriviaQA's normal form (triviaqa_evaluation.py).

    In this order: underscores become blanks; lower case; ASCII punctuation and ‘ ’ ´ ` become
    blanks ("U.S." -> "u s"); articles deleted; white space collapsed.
    """
    text = text.replace("_", " ").lower().translate(_TRIVIA_PUNCTUATION)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def triviaqa(records: Sequence[Record]) -> Scored:
    """TriviaQA: exact match and F1 of normal forms, the best over all aliases."""

    def exact(prediction: str, answer: str) -> float:
        return float(trivia_normal(prediction) == trivia_normal(answer))

    def f1(prediction: str, answer: str) -> float:
        return overlap_f1(trivia_normal(prediction).split(), trivia_normal(answer).split())

    def score(prediction: str, answers: list[str]) -> Scores:
        return {"exact": best(exact, prediction, answers), "f1": best(f1, prediction, answers)}

    return mean_scored(records, score, "exact", {"exact": 0.0, "f1": 0.0})


def open_domain(records: Sequence[Record]) -> Scored:
    """NQ-open and WebQuestions (orqa's eval_utils.py): exact match after Unicode decomposition
    (NFD) and SQuAD's normal form. Accents stay, decomposed."""

    def exact(prediction: str, answer: str) -> float:
        forms = (squad_normal(unicodedata.normalize("NFD", text)) for text in (prediction, answer))
        return float(len(set(forms)) == 1)

    return mean_scored(
        records,
        lambda prediction, answers: {"exact": best(exact, prediction, answers)},
        "exact",
        {"exact": 0.0},
    )


def exact_text(records: Sequence[Record]) -> Scored:
    """The synthetic tasks and reasoning primitives: the same text, but for blanks around it."""

    def score(prediction: str, answers: list[str]) -> Scores:
        return {"accuracy": float(prediction.strip() in {answer.strip() for answer in answers})}

    return mean_scored(records, score, "accuracy", {"accuracy": 0.0})
