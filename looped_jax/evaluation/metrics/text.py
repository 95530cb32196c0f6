"""What the question-answering metrics share: normal forms of answers, and the F1 of two of them."""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

_PUNCTUATION = str.maketrans("", "", string.punctuation)


def squad_normal(text: str) -> str:
    """SQuAD's normal form (evaluate-v2.0.py, also CoQA's and QuAC's).

    In this order: lower case; ASCII punctuation deleted ("U.S." -> "us"); the words a, an, the
    deleted; white space collapsed. Other quotation marks and accents stay.
    """
    text = text.lower().translate(_PUNCTUATION)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def overlap_f1(prediction: Sequence[str], answer: Sequence[str]) -> float:
    """Harmonic mean of precision and recall of two bags of words; 0 if they share none."""
    shared = sum((Counter(prediction) & Counter(answer)).values())
    if not shared:
        return 0.0
    precision, recall = shared / len(prediction), shared / len(answer)
    return 2 * precision * recall / (precision + recall)


def squad_f1(prediction: str, answer: str) -> float:
    """F1 as in SQuAD 2.0 and CoQA: if a side is empty, 1 if both are, else 0."""
    a, b = squad_normal(prediction).split(), squad_normal(answer).split()
    return overlap_f1(a, b) if a and b else float(a == b)


def squad_1_f1(prediction: str, answer: str) -> float:
    """F1 as in SQuAD 1.1 and QuAC: 0 if nothing is shared, also where both are empty."""
    return overlap_f1(squad_normal(prediction).split(), squad_normal(answer).split())


def squad_exact(prediction: str, answer: str) -> float:
    """1 if the normal forms are equal."""
    return float(squad_normal(prediction) == squad_normal(answer))


def best(metric: Callable[[str, str], float], prediction: str, answers: Sequence[str]) -> float:
    """The largest value over the accepted answers."""
    return max(metric(prediction, answer) for answer in answers)


def leave_one_out(
    metric: Callable[[str, str], float], prediction: str, answers: Sequence[str]
) -> float:
    """Mean over the answers of the best value over the others; of one answer, its value.

    A person's own answer is compared with the other persons' only; so is the model's, once for
    each set of all but one (CoQA's evaluate-v1.0.py and QuAC's scorer.py).
    """
    if len(answers) == 1:
        return metric(prediction, answers[0])
    values = [metric(prediction, answer) for answer in answers]
    return sum(max(values[:i] + values[i + 1 :]) for i in range(len(values))) / len(values)
