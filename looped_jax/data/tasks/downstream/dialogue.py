"""Conversations about a passage: QuAC and CoQA.

The passage, the conversation so far with the first person's answers, and the next question; no
other passage is shown, as the conversation is the demonstration. Every turn is asked.
"""

import json
from collections.abc import Iterator

from etils import epath

from looped_jax.data.tasks.downstream.base import DownstreamTask
from looped_jax.data.tasks.downstream.example import Example
from looped_jax.data.tasks.downstream.prompts import Style
from looped_jax.data.tasks.downstream.squad_format import paragraphs

CANNOT_ANSWER = "CANNOTANSWER"


def read_quac(path: epath.Path) -> Iterator[Example]:
    """val_v0.2.json: SQuAD's form, a paragraph a dialogue, its turns in order."""
    for article, paragraph in paragraphs(path):
        history: list[tuple[str, str]] = []
        for question in paragraph["qas"]:
            answers = tuple(answer["text"] for answer in question["answers"])
            yield Example(
                question["id"],
                question["question"],
                answers,
                context=paragraph["context"],
                title=article.get("title", ""),
                history=tuple(history),
                fields={
                    "dialogue_id": paragraph["id"],
                    "section_title": article.get("section_title", ""),
                },
            )
            reference = question.get("orig_answer", question["answers"][0])["text"]
            history.append((question["question"], reference))


def read_coqa(path: epath.Path) -> Iterator[Example]:
    """coqa-dev-v1.0.json: stories with questions, answers and additional_answers by turn."""
    for story in json.loads(path.read_text())["data"]:
        history: list[tuple[str, str]] = []
        others = list(story.get("additional_answers", {}).values())
        for turn, (question, answer) in enumerate(
            zip(story["questions"], story["answers"], strict=True)
        ):
            answers = (answer["input_text"], *(other[turn]["input_text"] for other in others))
            yield Example(
                f"{story['id']}_q#{question['turn_id']}",
                question["input_text"],
                answers,
                context=story["story"],
                history=tuple(history),
                fields={"dialogue_id": story["id"], "domain": story["source"]},
            )
            history.append((question["input_text"], answer["input_text"]))


def _dialogue(example: Example, gap: str) -> str:
    turns = [f"Q: {question}{gap}A: {answer}" for question, answer in example.history]
    return gap.join([*turns, f"Q: {example.question}{gap}A:"])


def _quac_passage(example: Example) -> str:
    # The marker that stands for "no answer" at the end of released passages.
    return example.context.removesuffix(f" {CANNOT_ANSWER}")


def _quac(example: Example, gap: str) -> str:
    heading = " - ".join(
        part for part in (example.title, str(example.fields.get("section_title", ""))) if part
    )
    titled = f"TITLE: {heading}{gap}" if heading else ""
    return f"{titled}PARAGRAPH: {_quac_passage(example)}\n\n{_dialogue(example, gap)}"


def _coqa(example: Example, gap: str) -> str:
    return f"{example.context}\n\n{_dialogue(example, gap)}"


TASKS = (
    DownstreamTask(
        name="quac",
        group="open_book_qa",
        metric="quac",
        shots=0,
        styles={
            "default": Style(lambda e: _quac(e, "\n")),
            "gpt3": Style(lambda e: _quac(e, "\n\n")),
        },
        released={
            "train": ("train_v0.2.json",),
            "validation": ("val_v0.2.json", "quac.json", "quac_val_multiref.json"),
        },
        reader=read_quac,
        where="get {train,val}_v0.2.json from https://quac.ai (TFDS's quac has lost the dialogues)",
    ),
    DownstreamTask(
        name="coqa",
        group="open_book_qa",
        metric="coqa",
        shots=0,
        styles={
            "default": Style(lambda e: _coqa(e, "\n")),
            "lm_eval": Style(lambda e: _coqa(e, "\n\n"), stop=("\nQ:",)),
        },
        released={
            "train": ("coqa-train-v1.0.json",),
            "validation": ("coqa-dev-v1.0.json", "coqa.json"),
        },
        reader=read_coqa,
        where="get coqa-{train,dev}-v1.0.json from https://stanfordnlp.github.io/coqa/ (TFDS's "
        "coqa has lost the additional answers)",
    ),
)
