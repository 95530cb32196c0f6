"""What a downstream task is: where its examples come from and how they are asked.

A task is one `DownstreamTask`: its source, its prompt in one or more styles, its shots and the name
of its metric. To add one, write one (docs/tasks.md) and list it in registry.py.
"""

import bisect
import dataclasses
import hashlib
import json
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from looped_jax.data.files import identity
from looped_jax.data.json_text import json_lines
from looped_jax.data.tasks.downstream.records import check_record, wrong
from looped_jax.errors import UserError

# A longer run of letters is no word whose beginning is worth losing.
_LONGEST_WORD = 64
GROUPS = ("closed_book_qa", "open_book_qa", "math_word_problems", "reasoning_primitives")


@dataclasses.dataclass(frozen=True)
class Example:
    """One question. ``answers``: all that are accepted; () where it cannot be answered."""

    id: str
    question: str
    answers: tuple[str, ...]
    context: str = ""
    title: str = ""
    # The conversation so far: (question, the first reference's answer).
    history: tuple[tuple[str, str], ...] = ()
    # What the metric needs beside the answers, as looped_jax.score takes it.
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def dialogue(self) -> str:
        """Id of the conversation that the question is a turn of; its own where it is of none."""
        return str(self.fields.get("dialogue_id", self.id))


def first_answer(example: Example) -> str:
    """What an exemplar answers."""
    return example.answers[0]


@dataclasses.dataclass(frozen=True)
class Style:
    """How an example is asked: the text up to where the answer starts, and the answer.

    A prompt is the preamble, then each exemplar with its answer, then the question, all joined by
    ``separator``; a blank stands before an answer.
    """

    question: Callable[[Example], str]
    answer: Callable[[Example], str] = first_answer
    separator: str = "\n\n"
    preamble: str = ""
    stop: tuple[str, ...] = ("\n",)

    def question_and_answer(self, example: Example) -> tuple[str, str]:
        """The two parts of the text of an example whose answer is shown."""
        return self.question(example), f" {self.answer(example)}"


Reader = Callable[[epath.Path], Iterator[Example]]
# Builder, {split: TFDS split}, features -> Example (None: left out).
TfdsSource = tuple[str, Mapping[str, str], Callable[[Any], Example | None]]


@dataclasses.dataclass(frozen=True)
class DownstreamTask:
    """A task. ``released``: for each split the file names that its own release has; ``reader``
    reads one. ``tfds``: where its builder carries all that the metric needs. ``where``: how to
    get the data. ``generate``: examples made rather than read, from (split, count)."""

    name: str
    group: str
    metric: str
    styles: Mapping[str, Style]
    shots: int = 5
    where: str = ""
    released: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    reader: Reader | None = None
    tfds: TfdsSource | None = None
    generate: Callable[[str, int], list[Example]] | None = None
    # A prediction from the generated text, cut at the first stop.
    extract: Callable[[str], Any] = str.strip
    max_new_tokens: int = 32

    def style(self, name: str) -> Style:
        """A style by name; a task that has no such style of its own uses its default."""
        return self.styles.get(name, self.styles["default"])

    def examples(self, split: str, data_dir: str = "", count: int = 0) -> list[Example]:
        """The examples of a split (train for exemplars, validation for evaluation).

        From ``data_dir`` (or its subfolder of the task's name): `<task>.jsonl` in the simple form
        (docs/evaluate.md) or the released files; without it from TFDS. UserError says how to get
        what is missing.
        """
        if self.generate is not None:
            return self.generate(split, count or 1000)
        examples = self._local(split, data_dir) if data_dir else self._from_tfds(split)
        return examples[:count] if count else examples

    def sources(self, splits: Sequence[str], data_dir: str = "") -> dict[str, dict[str, Any]]:
        """What ``examples`` reads of each split, for records: a file with its SHA-256, or TFDS's
        builder; nothing where they are generated. UserError as there."""
        if self.generate is not None:
            return {}
        if data_dir:
            paths = {split: self._file(split, data_dir) for split in splits}
            files = {path: identity(path) for path in set(paths.values())}
            return {split: files[path] for split, path in paths.items()}
        builder, tfds_splits, _ = self._tfds()
        return {split: {"tfds": builder, "split": tfds_splits[split]} for split in splits}

    def _local(self, split: str, data_dir: str) -> list[Example]:
        path = self._file(split, data_dir)
        if self.reader is None or path.name == f"{self.name}.jsonl":
            return read_simple(path, split)
        return _read_released(self.reader, path)

    def _file(self, split: str, data_dir: str) -> epath.Path:
        folder = epath.Path(data_dir)
        if not folder.is_dir():
            raise UserError(f"config.eval.data_dir={folder} is not a folder")
        names = (f"{self.name}.jsonl", *self.released.get(split, ()))
        for place in (folder, folder / self.name):
            for name in names:
                if (place / name).is_file():
                    return place / name
        raise UserError(
            f"task {self.name}: no {', '.join(names)} in config.eval.data_dir={folder}; "
            f"{self.where}"
        )

    def _from_tfds(self, split: str) -> list[Example]:
        from looped_jax.data.tasks.downstream.tfds_source import load

        builder, splits, to_example = self._tfds()
        return load(self.name, builder, splits[split], to_example, self.where)

    def _tfds(self) -> TfdsSource:
        if self.tfds is None:
            raise UserError(
                f"task {self.name}: its files are needed: set --config.eval.data_dir (--data_dir "
                f"of looped_jax.tasks); {self.where}"
            )
        return self.tfds


def read_simple(path: epath.Path, split: str) -> list[Example]:
    """Reads the simple form: JSON lines with id, question, answers, context, title, history
    [{question, answer}], split (fewshot or eval), and what else the metric needs.

    UserError names a line that is none, or an id that occurs twice.
    """
    wanted = {"train": "fewshot"}.get(split, "eval")
    examples, seen = [], set()
    for where, line in json_lines(path):
        record = check_record(line, where)
        if absent := [key for key in ("id", "question", "split") if key not in record]:
            raise UserError(f'{where}: not an example: no "{absent[0]}"')
        split_of_line = record.pop("split")
        if split_of_line not in ("fewshot", "eval"):
            raise wrong(where, "split", split_of_line, '"fewshot" or "eval"')
        example = Example(
            id=str(record.pop("id")),
            question=record.pop("question"),
            answers=tuple(record.pop("answers")),
            context=record.pop("context", ""),
            title=record.pop("title", ""),
            history=_turns(record.pop("history", []), where),
            fields=record,
        )
        check_example(example, where)
        if example.id in seen:
            raise UserError(f"{where}: id {example.id!r} occurs twice")
        seen.add(example.id)
        if split_of_line == wanted:
            examples.append(example)
    if not examples:
        raise UserError(f"{path} has no example with split {wanted!r}")
    return examples


def _turns(history: Any, where: str) -> tuple[tuple[str, str], ...]:
    try:
        return tuple((turn["question"], turn["answer"]) for turn in history)
    except (KeyError, TypeError) as error:
        form = '[{"question": "…", "answer": "…"}]'
        raise wrong(where, "history", history, form) from error


def check_example(example: Example, where: str) -> None:
    """UserError, beginning with ``where``, if what is to be text is none, or not Unicode, or if
    ``fields`` are not of the form that metrics take."""
    said = [part for turn in example.history for part in turn]
    texts = {"id": [example.id], "question": [example.question], "history": said}
    texts |= {"context": [example.context], "title": [example.title]}
    for key, parts in texts.items():
        for part in parts:
            if not isinstance(part, str):
                raise wrong(where, key, part, "a text")
    record = check_record({**example.fields, "answers": list(example.answers)}, where)
    try:
        for part in (*(p for parts in texts.values() for p in parts), *record["answers"]):
            part.encode("utf-8")
        json.dumps(record, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(f"{where}: a lone surrogate, so not Unicode text") from error


# Whatever a reader that was written for one format meets in another.
_OTHER_FORMAT = (
    *(ArithmeticError, AttributeError, LookupError, RecursionError),
    *(SyntaxError, TypeError, ValueError),
)


def _read_released(reader: Reader, path: epath.Path) -> list[Example]:
    try:
        examples = list(reader(path))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except _OTHER_FORMAT as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{path} is not in the released format ({reason})") from error
    for number, example in enumerate(examples, start=1):
        check_example(example, f"{path}, example {number}")
    if not examples:
        raise UserError(f"{path} has no examples")
    return examples


def draw_exemplars(pool: Sequence[Example], shots: int, seed: int = 0) -> list[Example]:
    """The same exemplars for everybody: drawn from the pool, ordered by id, by a fixed seed.

    A conversation is one exemplar: its last turn, which carries all before it. UserError if the
    pool has too few.
    """
    last_turns = {example.dialogue: example for example in pool}
    if shots > len(last_turns):
        raise UserError(f"{shots} shots were asked for, the training split has {len(last_turns)}")
    ordered = sorted(last_turns.values(), key=lambda example: example.id)
    return random.Random(seed).sample(ordered, shots)


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A prompt's text, the ids of the exemplars in it, and what did not fit: how many exemplars
    went, whether the context (or the conversation) lost its beginning, whether all that is not
    enough."""

    text: str
    exemplars: tuple[str, ...]
    dropped: int = 0
    context_cut: bool = False
    too_long: bool = False

    @property
    def hash(self) -> str:
        """Twelve hex digits of the text's SHA-256: equal prompts can be told by it."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:12]


def build_prompt(
    style: Style,
    example: Example,
    exemplars: Sequence[Example],
    fits: Callable[[str], bool],
) -> Prompt:
    """The longest prompt that fits: exemplars go from the front, then, if need be, the beginning
    of the context (whole words, where it has words) and of the conversation; never the question.
    """
    shown = ["".join(style.question_and_answer(e)) for e in exemplars]

    def text(first_exemplar: int, asked: Example) -> str:
        parts = [*shown[first_exemplar:], style.question(asked)]
        return style.preamble + style.separator.join(parts)

    for dropped in range(len(shown) + 1):
        if fits(text(dropped, example)):
            kept = tuple(e.id for e in exemplars[dropped:])
            return Prompt(text(dropped, example), kept, dropped)

    # What may go from the front: the context, then turns of the conversation.
    size, turns = len(example.context), example.history

    def shortened(cut: int) -> str:
        context, history = example.context[cut:], turns[max(0, cut - size) :]
        return text(len(shown), dataclasses.replace(example, context=context, history=history))

    cut = bisect.bisect_left(range(size + len(turns)), True, key=lambda cut: fits(shortened(cut)))
    short = shortened(_word_at(example.context, cut) if cut <= size else cut)
    return Prompt(short, (), len(shown), context_cut=True, too_long=not fits(short))


def _word_at(text: str, at: int) -> int:
    """Where the first whole word at or after a place begins; the place itself within what is too
    long for a word, as where a language is written without blanks."""
    for word in re.finditer(r"\S+", text):
        if word.start() >= at:
            return word.start()
        if word.end() > at and word.end() - word.start() > _LONGEST_WORD:
            return at
    return len(text)
