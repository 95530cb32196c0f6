"""Documents that teach a small language model variable assignment, in the one-line form.

    python -m looped_jax.data.tasks.assignment_documents --out=runs/programs

writes Pile-format shards for experiments/assignment.py (docs/evaluate.md). Half of them are
programs of the task's training split (never its evaluation's), with a dozen questions each. These
alone do not teach a model of this size: for thousands of steps it says any value that it has seen.
What is asked for is induction, to find a name's earlier occurrence and copy what followed; in
`b=? 17` name and value are three or four characters apart, and nothing is learned of finding until
something is known of looking back, and the other way round. The other half lead there in small
steps:

    walk   over a few characters, each with its own successor, next to each other or, in more and
           more places, with the separators of programs between them
    pairs  of names and numbers, again and again, with the same separators: the answer to a question
           about a program is found like this, and so is its second digit

Only what can be known is trained on: not the names asked for, nor first visits, jumps and
separators, whose noise would drown the rest.
"""

import json
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import zstandard

from looped_jax.config import cli
from looped_jax.data.tasks.downstream import TASKS
from looped_jax.data.tasks.varassign import LARGEST
from looped_jax.errors import UserError

_FLAGS = cli.Flags()
_OUT = _FLAGS.string("out", "runs/programs", "Folder to write to.")
_DOCUMENTS = _FLAGS.integer("documents", 100_000, "Documents to train on.", lower_bound=8)
_DEPTHS = _FLAGS.multi_enum("depth", ["0", "1"], ["0", "1"], "Depth of the programs.")

VALIDATION = 200  # Documents of each depth.
QUESTIONS = 12  # About a program.
CHARACTERS = np.array(list("abcdefghijklmnopqrstuvwxyz0123456789"))
SEPARATORS = ("=", "=?", "=? ", " ", ", ", "\n", "= ")
# In what share of the places a document has one: a question's own form is learned last.
SEPARATED = (0.0, 0.0, 0.0, 0.25, 0.5, 0.75, 1.0)
ENDS = (", ", "\n", " ", "; ")  # Of a pair.

Turns = list[dict[str, str]]


def separator_of(rng: np.random.Generator) -> Callable[[], str]:
    """What draws the separators of one document, "" for none: all alike, or of all kinds."""
    share, kinds = rng.choice(SEPARATED), rng.choice(SEPARATORS, rng.choice([1, len(SEPARATORS)]))
    return lambda: str(rng.choice(kinds)) if rng.random() < share else ""


def walk(rng: np.random.Generator, length: int = 150, states: int = 8) -> Turns:
    """A walk over a few characters that mostly steps from a character to its successor.

    Trained on: steps to the successor from characters visited before.
    """
    alphabet = rng.choice(CHARACTERS, states, replace=False)
    successor, state = rng.permutation(states), int(rng.integers(states))
    separator = separator_of(rng)
    turns: Turns = [{"prompt": str(alphabet[state]), "text": ""}]
    left, written = set[int](), 1
    while written < length:
        between = separator()
        follows = rng.random() < 0.75
        after = int(successor[state] if follows else rng.integers(states))
        known = follows and state in left
        if between or not known:
            if turns[-1]["text"]:
                turns.append({"prompt": "", "text": ""})
            turns[-1]["prompt"] += between + ("" if known else str(alphabet[after]))
        turns[-1]["text"] += str(alphabet[after]) if known else ""
        written += len(between) + 1
        if follows:
            left.add(state)
        state = after
    return turns


def pairs(rng: np.random.Generator, length: int = 150, names: int = 5) -> Turns:
    """Names with their numbers, again and again. Trained on: numbers of names seen before."""
    alphabet = rng.choice(CHARACTERS[:26], names, replace=False)
    numbers = rng.integers(1, LARGEST + 1, names)
    separator = separator_of(rng)
    turns: Turns = []
    seen, written = set[int](), 0
    while written < length - 6:  # The longest pair: a, =?, blank, 17, comma, blank.
        name = int(rng.integers(names))
        prompt, text = f"{alphabet[name]}{separator()}", f"{numbers[name]}"
        if name not in seen:
            prompt, text = prompt + text, ""
        turns += [{"prompt": prompt, "text": text}, {"prompt": str(rng.choice(ENDS)), "text": ""}]
        written += sum(len(turn["prompt"]) + len(turn["text"]) for turn in turns[-2:])
        seen.add(name)
    return turns


def program(question: str, answer: str, rng: np.random.Generator) -> Turns:
    """An example in one line, with more questions about the same program below it."""
    *assignments, asked = question.split(", ")
    right = dict(assignment.split("=") for assignment in assignments)
    values = {name: right.get(value, value) for name, value in right.items()}
    aliases = [name for name, value in right.items() if value in right]
    assert values[asked.removesuffix("=?")] == answer
    more = rng.choice(aliases or list(right), QUESTIONS - 1)
    return [
        {"prompt": question, "text": f" {answer}\n"},
        *({"prompt": f"{name}=?", "text": f" {values[name]}\n"} for name in more),
    ]


def programs(name: str, split: str, count: int) -> list[dict[str, Any]]:
    """Documents of the first examples of a task's split."""
    task, rng = TASKS[name], np.random.default_rng(0)
    asked = task.styles["line"].question
    component = {"meta": {"pile_set_name": name}}
    return [
        {"turns": program(asked(example), example.answers[0], rng)} | component
        for example in task.examples(split, count=count)
    ]


def main(overrides: dict[str, str]) -> None:
    """Writes the documents."""
    if overrides:
        raise UserError("there is no config to override")
    out, rng = pathlib.Path(_OUT.value), np.random.default_rng(0)
    out.mkdir(parents=True, exist_ok=True)
    train, validation = [], []
    for depth in _DEPTHS.value:
        name = f"varassign_depth{depth}_math"
        count = _DOCUMENTS.value // (2 * len(_DEPTHS.value))
        train += programs(name, "train", count)
        validation += programs(name, "validation", VALIDATION)
    easier = _DOCUMENTS.value - len(train)
    for kind in (walk, pairs):
        component = {"meta": {"pile_set_name": kind.__name__}}
        train += [{"turns": kind(rng)} | component for _ in range(easier // 2)]
    for name, documents in {"train-00000": train, "val": validation}.items():
        rng.shuffle(documents)
        lines = "".join(json.dumps(document) + "\n" for document in documents)
        path = out / f"{name}.jsonl.zst"
        path.write_bytes(zstandard.compress(lines.encode()))
        print(f"{path}: {len(documents):,} documents")


if __name__ == "__main__":
    cli.run(main, _FLAGS)
