"""The documents of `python -m looped_jax.data.tasks.assignment_documents`."""

import itertools
import json
import pathlib
import re
from collections.abc import Callable
from typing import Any

import zstandard


def shard(path: pathlib.Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in zstandard.decompress(path.read_bytes()).splitlines()]


def test_documents_ask_what_can_be_known_and_no_program_that_is_evaluated(
    run_module: Callable, tmp_path: pathlib.Path
) -> None:
    done = run_module(
        "looped_jax.data.tasks.assignment_documents", f"--out={tmp_path}", "--documents=200"
    )
    assert done.returncode == 0, done.stderr
    train, held_out = (shard(tmp_path / f"{name}.jsonl.zst") for name in ("train-00000", "val"))
    of_kind: dict[str, list[Any]] = {}
    for document in train:
        of_kind.setdefault(document["meta"]["pile_set_name"], []).append(document["turns"])
    names = ("varassign_depth0_math", "varassign_depth1_math")
    assert {kind: len(documents) for kind, documents in of_kind.items()} == {
        **dict.fromkeys((*names, "walk", "pairs"), 50)
    }
    assert len(held_out) == 400
    programs = [turns for name in names for turns in of_kind[name]]
    evaluated = [document["turns"] for document in held_out]
    for first, *more in (*programs, *evaluated):
        *assignments, asked = first["prompt"].split(", ")
        right = dict(assignment.split("=") for assignment in assignments)
        turns = [(asked, first["text"]), *((turn["prompt"], turn["text"]) for turn in more)]
        assert len(turns) == 12
        for question, answer in turns:
            name = question.removesuffix("=?")
            assert answer == f" {right.get(right[name], right[name])}\n"
    taught, asked_for = (
        {turns[0]["prompt"].rpartition(", ")[0] for turns in documents}
        for documents in (programs, evaluated)
    )
    assert not taught & asked_for
    for turns in of_kind["walk"]:
        # (a character, whether it is trained on), without separators.
        steps = [
            (character, part == "text")
            for turn in turns
            for part in ("prompt", "text")
            for character in turn[part]
            if character.isalnum()
        ]
        assert any(trained for _, trained in steps)
        seen: dict[str, set[str]] = {}
        successor: dict[str, str] = {}
        for (before, _), (after, trained) in itertools.pairwise(steps):
            if trained:  # It is always the same one, and has been seen before.
                assert after in seen[before]
                assert successor.setdefault(before, after) == after
            seen.setdefault(before, set()).add(after)
    for turns in of_kind["pairs"]:
        numbers: dict[str, str] = {}
        for turn in turns[::2]:
            name, number = re.findall(r"[a-z]|\d+", turn["prompt"] + turn["text"])
            assert turn["text"] == (number if name in numbers else "")
            assert numbers.setdefault(name, number) == number
