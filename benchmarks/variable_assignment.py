"""Documents that teach a small language model variable assignment, in the one-line form.

    python -m benchmarks.variable_assignment --out=runs/programs

writes Pile-format shards for experiments/assignment.py (docs/evaluate.md). Programs alone do not
teach a model of this size: for thousands of steps it says any value that it has seen.
What is asked for is induction, to find a name's earlier occurrence and copy what followed; in
`b=? 5` name and value are three characters apart, and nothing is learned of finding until
something is known of looking back, and the other way round. So half of the documents are easier
instances of induction: walks over a few characters, each with its own successor, with the
separators of programs between them or none. The other half are programs of the task's training
split (never its evaluation's), with a dozen questions each.
"""

import json
import pathlib
import re

import numpy as np
import zstandard
from absl import app, flags

from looped_jax.data.tasks.downstream import TASKS

_OUT = flags.DEFINE_string("out", "runs/programs", "Folder to write to.")
_DOCUMENTS = flags.DEFINE_integer("documents", 80_000, "Documents to train on.", lower_bound=2)

NAMES = ("varassign_depth0_math", "varassign_depth1_math")
VALIDATION = 200  # Documents of each task, with one question.
QUESTIONS = 12
CHARACTERS = np.array(list("abcdefghijklmnopqrstuvwxyz0123456789"))
SEPARATORS = ("", "=", "= ", "=?", "=? ", " ", ", ", "\n")


def walk(rng: np.random.Generator, length: int = 160, states: int = 8) -> str:
    """A walk over a few characters that mostly steps from a character to its successor."""
    alphabet = rng.choice(CHARACTERS, states, replace=False)
    successor, state, separator = rng.permutation(states), rng.integers(states), ""
    kind, text = rng.random(), ""
    if kind >= 0.4:
        separator = str(rng.choice(SEPARATORS))
    while len(text) < length:
        text += alphabet[state] + (str(rng.choice(SEPARATORS)) if kind >= 0.75 else separator)
        state = rng.integers(states) if rng.random() < 0.25 else successor[state]
    return text


def program(question: str, answer: str, rng: np.random.Generator) -> dict[str, str]:
    """An example in one line, and then more questions about the same program."""
    *assignments, asked = question.split(", ")
    right = dict(assignment.split("=") for assignment in assignments)
    values = {name: right.get(value, value) for name, value in right.items()}
    aliases = [name for name, value in right.items() if value in right]
    more = rng.choice(aliases or list(right), QUESTIONS - 1)
    assert values[asked.removesuffix("=?")] == answer
    return {
        "prompt": question,
        "text": "".join([f" {answer}", *(f"\n{name}=? {values[name]}" for name in more)]),
    }


def asked(name: str, split: str, count: int) -> list[tuple[str, str]]:
    """Examples of a task in one line, and their answers."""
    task = TASKS[name]
    examples = task.examples(split, count=count)
    return [(task.styles["line"].question(e), e.answers[0]) for e in examples]


def main(_: list[str]) -> None:
    """Writes the documents."""
    out, rng = pathlib.Path(_OUT.value), np.random.default_rng(0)
    out.mkdir(parents=True, exist_ok=True)
    each = _DOCUMENTS.value // 4
    train, validation = [], []
    for name in NAMES:
        component = {"meta": {"pile_set_name": re.sub("_math", "", name)}}
        train += [program(*e, rng) | component for e in asked(name, "train", each)]
        for question, answer in asked(name, "validation", VALIDATION):
            validation.append({"prompt": question, "text": f" {answer}"} | component)
    walks = _DOCUMENTS.value - len(train)
    train += [{"text": walk(rng), "meta": {"pile_set_name": "walk"}} for _ in range(walks)]
    order = rng.permutation(len(train))
    for name, documents in (("train-00000", [train[i] for i in order]), ("val", validation)):
        lines = "".join(json.dumps(document) + "\n" for document in documents)
        path = out / f"{name}.jsonl.zst"
        path.write_bytes(zstandard.compress(lines.encode()))
        print(f"{len(documents):,} documents: {path}")


if __name__ == "__main__":
    app.run(main)
