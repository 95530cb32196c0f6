"""What a metric is: records in, scores per example and totals out, nothing dropped unsaid."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

# Of the form that looped_jax.data.tasks.downstream.records.check_record gives.
Record = Mapping[str, Any]
Scores = dict[str, float]


@dataclasses.dataclass(frozen=True)
class Scored:
    """Scores of a task's examples, 0 to 1, and its totals in percent.

    ``examples[i]`` are record i's scores, empty where it does not count (``counts`` says how
    many and why). ``headline`` names the score that stands for the task in tables.
    """

    headline: str
    examples: list[Scores]
    totals: dict[str, float]
    counts: dict[str, int]


def prediction_of(record: Record, counts: "Counter[str]") -> str | None:
    """The prediction; None, and counted, where there is none."""
    prediction = record.get("prediction")
    if prediction is None:
        counts["missing_predictions"] += 1
        return None
    text: str = prediction
    return text


def mean_scored(
    records: Sequence[Record],
    score: Callable[[str, list[str]], Scores],
    headline: str,
    zero: Scores,
) -> Scored:
    """For metrics that are the mean over all examples: a missing prediction scores ``zero``, an
    example without answers cannot be scored and does not count."""
    counts: Counter[str] = Counter()
    examples: list[Scores] = []
    for record in records:
        answers = list(record["answers"])
        if not answers:
            counts["examples_without_answers"] += 1
            examples.append({})
            continue
        prediction = prediction_of(record, counts)
        examples.append(zero if prediction is None else score(prediction, answers))
    return Scored(headline, examples, means(examples), dict(counts))


def means(examples: Sequence[Scores]) -> dict[str, float]:
    """Mean of each score over the examples that have it, in percent."""
    names = dict.fromkeys(name for scores in examples for name in scores)
    values = {name: [scores[name] for scores in examples if name in scores] for name in names}
    return {name: 100 * sum(of) / len(of) for name, of in values.items()}
