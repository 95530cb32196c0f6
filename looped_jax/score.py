"""Scores a file of predictions, of any model, by the task's official metric.

python -m looped_jax.score --task=squad_v2 --input=predictions.jsonl

A line has `prediction` (a text; for drop also a list of spans), `answers` (a list of all accepted
texts; for squad_v2 none means unanswerable) and should have `id`; also `drop_answers` for drop,
`dialogue_id` for quac, and if wanted `domain` for coqa and `no_answer_probability` for squad_v2.
What has another form is refused by line and key. Prints one JSON object: figures in percent, and
how many examples had something missing.
"""

import json
from collections import Counter
from typing import Any

from etils import epath

from looped_jax.config import cli
from looped_jax.data.json_text import json_lines
from looped_jax.data.tasks.downstream.records import check_record
from looped_jax.errors import UserError
from looped_jax.evaluation.metrics import drop, metric_of

_FLAGS = cli.Flags()
_TASK = _FLAGS.string("task", "", "Task whose metric is used.")
_INPUT = _FLAGS.path("input", "", "JSON lines.")


def main(overrides: dict[str, str]) -> None:
    """Reads, scores, prints."""
    if overrides or not _TASK.value or not _INPUT.value:
        raise UserError("say --task=NAME and --input=FILE.jsonl")
    metric = metric_of(_TASK.value)
    records, counts = read_records(epath.Path(_INPUT.value), spans=metric is drop)
    report = metric(records)
    counts.update(report.counts)
    result: dict[str, Any] = {"task": _TASK.value, "examples": len(records)}
    print(json.dumps({**result, **report.totals, **counts}))


def read_records(
    path: epath.Path, spans: bool = False
) -> tuple[list[dict[str, Any]], "Counter[str]"]:
    """The records of a file, and counts of what is odd about them: of two lines with one id the
    first is kept. ``spans`` as check_record. UserError names a line that is no record."""
    counts: Counter[str] = Counter()
    seen: set[str] = set()
    records = []
    for where, line in json_lines(path):
        record = check_record(line, where, spans)
        if "id" not in record:
            counts["lines_without_id"] += 1
        elif str(record["id"]) in seen:
            counts["duplicate_ids_left_out"] += 1
            continue
        else:
            seen.add(str(record["id"]))
        records.append(record)
    if not records:
        raise UserError(f"{path} has no records")
    return records, counts


if __name__ == "__main__":
    cli.run(main, _FLAGS)
