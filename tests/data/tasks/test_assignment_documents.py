"""The documents of `python -m benchmarks.variable_assignment`."""

import itertools
import json
import pathlib
from collections.abc import Callable

import zstandard


def read_shard(path: pathlib.Path) -> bytes:
    return zstandard.decompress(path.read_bytes())


def test_all_answers_follow_and_no_program_is_evaluated(
    run_module: Callable, tmp_path: pathlib.Path
) -> None:
    done = run_module("benchmarks.variable_assignment", f"--out={tmp_path}", "--documents=200")
    assert done.returncode == 0, done.stderr
    train, validation = (
        [json.loads(line) for line in read_shard(tmp_path / f"{name}.jsonl.zst").splitlines()]
        for name in ("train-00000", "val")
    )
    programs = [document for document in train if "prompt" in document]
    assert (len(train), len(programs), len(validation)) == (200, 100, 400)
    for document in (*programs, *validation):
        *assignments, first = document["prompt"].split(", ")
        right = dict(assignment.split("=") for assignment in assignments)
        asked = (first + document["text"]).split("\n")
        assert len(asked) == (12 if document in programs else 1)
        for question in asked:
            name, value = question.split("=? ")
            assert value == right.get(right[name], right[name])
    stated = {document["prompt"].rpartition(", ")[0] for document in programs}
    assert not stated & {document["prompt"].rpartition(", ")[0] for document in validation}
    # A walk is over at most eight characters, from each mostly to the same next one.
    for document in train:
        if "prompt" not in document:
            states = [c for c in document["text"] if c.isalnum()]
            steps = list(itertools.pairwise(states))
            common = {a: max(map(steps.count, [s for s in steps if s[0] == a])) for a, _ in steps}
            assert len(set(states)) <= 8
            assert sum(common.values()) > 0.6 * len(steps)
