"""Metrics of conversations: CoQA and QuAC, with several persons' answers to every turn."""

from collections import Counter, defaultdict
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
    leave_one_out,
    squad_1_f1,
    squad_exact,
    squad_f1,
)

CANNOT_ANSWER = "CANNOTANSWER"
# Questions on which persons agree less than this are left out of QuAC's main figures.
MIN_HUMAN_F1 = 0.4


def coqa(records: Sequence[Record]) -> Scored:
    """CoQA (evaluate-v1.0.py): exact match and F1 against all persons' answers but one, each left
    out in turn; over all turns and, where records name a `domain`, per domain."""

    def score(prediction: str, answers: list[str]) -> Scores:
        return {
            "exact": leave_one_out(squad_exact, prediction, answers),
            "f1": leave_one_out(squad_f1, prediction, answers),
        }

    scored = mean_scored(records, score, "f1", {"exact": 0.0, "f1": 0.0})
    by_domain: dict[str, list[Scores]] = defaultdict(list)
    for record, scores in zip(records, scored.examples, strict=True):
        if "domain" in record:
            by_domain[str(record["domain"])].append(scores)
    for domain, of_domain in sorted(by_domain.items()):
        scored.totals.update({f"{domain}/{name}": v for name, v in means(of_domain).items()})
    return scored


def quac_references(answers: Sequence[str]) -> list[str]:
    """The answers that count: CANNOTANSWER if at least as many say so as give a span, else the
    spans alone."""
    spans = [answer for answer in answers if answer != CANNOT_ANSWER]
    return spans if len(spans) > len(answers) - len(spans) else [CANNOT_ANSWER]


def quac_f1(prediction: str, answer: str) -> float:
    """F1 of two spans; CANNOTANSWER agrees only with itself, to the letter."""
    if CANNOT_ANSWER in (prediction, answer):
        return float(prediction == answer)
    return squad_1_f1(prediction, answer)


def human_f1(references: Sequence[str]) -> float:
    """How well persons do: mean over the references of the best F1 with another; 1 for one."""
    if len(references) == 1:
        return 1.0
    best_other = [
        max(quac_f1(own, other) for j, other in enumerate(references) if j != i)
        for i, own in enumerate(references)
    ]
    return sum(best_other) / len(best_other)


def quac(records: Sequence[Record]) -> Scored:
    """QuAC (scorer.py): F1 against all persons' answers but one, each left out in turn.

    `f1`, `HEQ` (share of questions where the model is at least as good as persons are) and
    `DHEQ` (share of dialogues, by `dialogue_id`, in which that holds of all questions) leave out
    questions on which persons agree less than 0.4; `unfiltered_f1` does not. A missing
    prediction scores 0 and spoils its dialogue.
    """
    counts: Counter[str] = Counter()
    examples: list[Scores] = []
    unfiltered: list[Scores] = []
    dialogue_good: dict[str | int, bool] = {}
    for record in records:
        answers = record["answers"]
        # A question that names no dialogue is one of its own, which no name can be mistaken for.
        dialogue = str(record.get("dialogue_id", "")) or len(dialogue_good)
        dialogue_good.setdefault(dialogue, True)
        if not answers:
            counts["examples_without_answers"] += 1
            examples.append({})
            continue
        references = quac_references(answers)
        agreement = human_f1(references)
        prediction = prediction_of(record, counts)
        f1 = 0.0 if prediction is None else leave_one_out(quac_f1, prediction, references)
        unfiltered.append({"unfiltered_f1": f1})
        if prediction is None:
            dialogue_good[dialogue] = False
        if agreement < MIN_HUMAN_F1:
            counts["low_agreement_left_out"] += 1
            examples.append({})
            continue
        equal = f1 >= agreement
        dialogue_good[dialogue] &= equal
        examples.append({"f1": f1, "HEQ": float(equal)})
    totals = means(examples) | means(unfiltered)
    if dialogue_good:
        totals["DHEQ"] = 100 * sum(dialogue_good.values()) / len(dialogue_good)
    return Scored("f1", examples, totals, dict(counts))
