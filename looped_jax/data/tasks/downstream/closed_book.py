"""Closed-book question answering: TriviaQA, NQ-open, WebQuestions, TyDiQA without its passage.

Asked as GPT-3 was (Brown et al. 2020, appendix G: `Q: …`, `A:`), with 5 shots from the training
split; the first line of the output is the answer. `gpt3` is that paper's own layout (a blank line
before `A:`), `lm_eval` that of EleutherAI's lm-evaluation-harness.
"""

import json
from collections.abc import Iterator
from typing import Any

from etils import epath

from looped_jax.data.tasks.downstream.base import DownstreamTask
from looped_jax.data.tasks.downstream.example import Example
from looped_jax.data.tasks.downstream.prompts import Style
from looped_jax.data.tasks.downstream.squad_format import tydiqa

DEFAULT = Style(lambda e: f"Q: {e.question}\nA:")
GPT3 = Style(lambda e: f"Q: {e.question}\n\nA:")
# The harness stops at "." and "," too, which cuts answers such as "St. Louis".
_HARNESS_STOPS = ("\n", ".", ",")


def read_triviaqa(path: epath.Path) -> Iterator[Example]:
    """The released JSON: Data[{QuestionId, Question, Answer{Aliases, NormalizedAliases, …}}]."""
    for entry in json.loads(path.read_text())["Data"]:
        answer = entry["Answer"]
        accepted = (*answer["NormalizedAliases"], *answer.get("HumanAnswers", ()))
        fields = {"shown": answer["Value"]}
        yield Example(entry["QuestionId"], entry["Question"], accepted, fields=fields)


def _trivia_answer(example: Example) -> str:
    """What an exemplar shows: the answer as written, where the release has it."""
    return str(example.fields.get("shown", example.answers[0]))


def read_nq_open(path: epath.Path) -> Iterator[Example]:
    """NQ-open.*.jsonl: {"question", "answer": [...]} a line."""
    for number, line in enumerate(path.read_text().splitlines()):
        record = json.loads(line)
        yield Example(f"nq-{number}", record["question"], tuple(record["answer"]))


def read_web_questions(path: epath.Path) -> Iterator[Example]:
    """The JSON of the WebQuestions release: [{qId, qText, answers}]."""
    for entry in json.loads(path.read_text()):
        yield Example(str(entry["qId"]), entry["qText"], tuple(entry["answers"]))


def _trivia_from_tfds(features: Any) -> Example:
    answer = features["answer"]
    return Example(
        features["question_id"].decode(),
        features["question"].decode(),
        tuple(text.decode() for text in answer["normalized_aliases"]),
        fields={"shown": answer["value"].decode()},
    )


def _open_from_tfds(features: Any) -> Example:
    question = features["question"].decode()
    answers = features["answer"] if "answer" in features else features["answers"]
    return Example(question, question, tuple(text.decode() for text in answers))


TASKS = (
    DownstreamTask(
        name="triviaqa",
        group="closed_book_qa",
        metric="triviaqa",
        styles={
            "default": Style(DEFAULT.question, _trivia_answer),
            "gpt3": Style(GPT3.question, _trivia_answer),
            "lm_eval": Style(
                lambda e: f"Question: {e.question}?\nAnswer:", _trivia_answer, stop=_HARNESS_STOPS
            ),
        },
        released={
            "train": ("unfiltered-web-train.json", "triviaqa-train.json"),
            "validation": ("unfiltered-web-dev.json", "triviaqa.json"),
        },
        reader=read_triviaqa,
        tfds=(
            "trivia_qa/unfiltered.nocontext",
            {"train": "train", "validation": "validation"},
            _trivia_from_tfds,
        ),
        where="get triviaqa-unfiltered from https://nlp.cs.washington.edu/triviaqa/",
    ),
    DownstreamTask(
        name="natural_questions",
        group="closed_book_qa",
        metric="open_domain",
        styles={
            "default": DEFAULT,
            "gpt3": GPT3,
            "lm_eval": Style(
                lambda e: f"Q: {e.question}?\nA:",
                separator="\n",
                preamble="Answer these questions:\n\n",
                stop=_HARNESS_STOPS,
            ),
        },
        released={"train": ("NQ-open.train.jsonl",), "validation": ("NQ-open.dev.jsonl",)},
        reader=read_nq_open,
        tfds=(
            "natural_questions_open",
            {"train": "train", "validation": "validation"},
            _open_from_tfds,
        ),
        where="get NQ-open.{train,dev}.jsonl from "
        "https://github.com/google-research-datasets/natural-questions/tree/master/nq_open",
    ),
    DownstreamTask(
        name="web_questions",
        group="closed_book_qa",
        metric="open_domain",
        styles={
            "default": DEFAULT,
            "gpt3": GPT3,
            "lm_eval": Style(lambda e: f"Question: {e.question}\nAnswer:"),
        },
        released={"train": ("train.json", "val.json"), "validation": ("test.json",)},
        reader=read_web_questions,
        tfds=("web_questions", {"train": "train", "validation": "test"}, _open_from_tfds),
        where="get train.json and test.json from "
        "https://github.com/brmson/dataset-factoid-webquestions (main)",
    ),
    tydiqa("tydiqa_nocontext", "closed_book_qa", 5, {"default": DEFAULT, "gpt3": GPT3}),
)
