"""Question answering with a passage: TyDiQA-GoldP, SQuAD 2.0, DROP.

Asked as GPT-3 was (Brown et al. 2020, appendix G), with 3 shots, since the paper's rows are of 1280
tokens. The first line of the output is the answer; SQuAD's unanswerable questions are answered
`unanswerable`, which is scored as no answer; DROP's lists of spans are written `a, b` and split
at the commas before scoring.
"""

import json
from collections.abc import Iterator

from etils import epath

from looped_jax.data.tasks.downstream.base import DownstreamTask
from looped_jax.data.tasks.downstream.example import Example
from looped_jax.data.tasks.downstream.prompts import Style
from looped_jax.data.tasks.downstream.squad_format import from_tfds_squad, read_squad, tydiqa

UNANSWERABLE = "unanswerable"


def _answer_or_none(example: Example) -> str:
    return example.answers[0] if example.answers else UNANSWERABLE


def _titled(example: Example, ask: str, reply: str, gap: str) -> str:
    title = example.title.replace("_", " ")
    parts = [f"Title: {title}"] if title else []
    parts += [f"Background: {example.context}", f"{ask}: {example.question}", f"{reply}:"]
    return gap.join(parts)


def _squad_prediction(text: str) -> str:
    answer = text.strip()
    return "" if answer.lower().rstrip(".") == UNANSWERABLE else answer


def read_drop(path: epath.Path) -> Iterator[Example]:
    """The released JSON: passage id -> {passage, qa_pairs[{question, answer, validated_answers}]}.

    `drop_answers` holds all answers as released.
    """
    for passage_id, entry in json.loads(path.read_text()).items():
        for number, pair in enumerate(entry["qa_pairs"]):
            released = [pair["answer"], *pair.get("validated_answers", ())]
            yield Example(
                pair.get("query_id", f"{passage_id}-{number}"),
                pair["question"],
                tuple(dict.fromkeys(_shown(answer) for answer in released)),
                context=entry["passage"],
                fields={"drop_answers": released},
            )


def _shown(answer: dict) -> str:
    if answer.get("number"):
        return str(answer["number"])
    if answer.get("spans"):
        return ", ".join(answer["spans"])
    date = answer.get("date") or {}
    return " ".join(str(date[p]) for p in ("day", "month", "year") if date.get(p))


def _drop_target(example: Example) -> str:
    released = example.fields.get("drop_answers")
    return _shown(released[0]) if released else example.answers[0]


def _drop_prediction(text: str) -> list[str]:
    return [span for part in text.split(", ") if (span := part.strip())] or [""]


_DROP = Style(
    lambda e: f"Passage: {e.context}\nQuestion: {e.question}\nAnswer:", answer=_drop_target
)

TASKS = (
    tydiqa(
        "tydiqa_goldp",
        "open_book_qa",
        3,
        {
            "default": Style(lambda e: _titled(e, "Q", "A", "\n")),
            "gpt3": Style(lambda e: _titled(e, "Q", "A", "\n\n")),
        },
    ),
    DownstreamTask(
        name="squad_v2",
        group="open_book_qa",
        metric="squad_v2",
        shots=3,
        styles={
            "default": Style(lambda e: _titled(e, "Q", "A", "\n"), answer=_answer_or_none),
            "gpt3": Style(lambda e: _titled(e, "Q", "A", "\n\n"), answer=_answer_or_none),
            "lm_eval": Style(
                lambda e: _titled(e, "Question", "Answer", "\n\n"), answer=_answer_or_none
            ),
        },
        released={
            "train": ("train-v2.0.json",),
            "validation": ("dev-v2.0.json", "squad_v2.json", "squad_v2_dev_article.json"),
        },
        reader=read_squad,
        tfds=("squad/v2.0", {"train": "train", "validation": "validation"}, from_tfds_squad),
        where="get {train,dev}-v2.0.json from https://rajpurkar.github.io/SQuAD-explorer/dataset/",
        extract=_squad_prediction,
    ),
    DownstreamTask(
        name="drop",
        group="open_book_qa",
        metric="drop",
        shots=3,
        styles={
            "default": _DROP,
            "lm_eval": Style(
                lambda e: f"{e.context} {e.question}", answer=_drop_target, stop=(".",)
            ),
        },
        released={
            "train": ("drop_dataset_train.json",),
            "validation": ("drop_dataset_dev.json", "drop.json"),
        },
        reader=read_drop,
        where="get drop_dataset_{train,dev}.json from "
        "https://ai2-public-datasets.s3.amazonaws.com/drop/drop_dataset.zip (TFDS's drop keeps "
        "only one span of an answer)",
        extract=_drop_prediction,
    ),
)
