"""SQuAD's JSON, which TyDiQA-GoldP and QuAC share, and its features in TFDS."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from looped_jax.data.tasks.downstream.base import DownstreamTask
from looped_jax.data.tasks.downstream.example import Example
from looped_jax.data.tasks.downstream.prompts import Style


def tydiqa(name: str, group: str, shots: int, styles: Mapping[str, Style]) -> DownstreamTask:
    """A task over TyDiQA-GoldP's English questions."""
    return DownstreamTask(
        name=name,
        group=group,
        metric="tydiqa",
        shots=shots,
        styles=styles,
        released={
            "train": ("tydiqa-goldp-v1.1-train.json",),
            "validation": ("tydiqa-goldp-v1.1-dev.json", "tydiqa_goldp.json"),
        },
        reader=lambda path: read_squad(path, only="english-"),
        tfds=(
            "tydi_qa/goldp",
            {"train": "train", "validation": "validation-en"},
            from_tfds_squad,
        ),
        where="get tydiqa-goldp-v1.1-{train,dev}.json from "
        "https://storage.googleapis.com/tydiqa/v1.1/",
    )


def paragraphs(path: epath.Path) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """(article, paragraph) of data[].paragraphs[]."""
    for article in json.loads(path.read_text())["data"]:
        for paragraph in article["paragraphs"]:
            yield article, paragraph


def read_squad(path: epath.Path, only: str = "") -> Iterator[Example]:
    """Questions whose id starts with ``only``; answers without repeats, none if unanswerable."""
    for article, paragraph in paragraphs(path):
        for question in paragraph["qas"]:
            if not question["id"].startswith(only):
                continue
            answers = () if question.get("is_impossible") else question["answers"]
            yield Example(
                question["id"],
                question["question"],
                tuple(dict.fromkeys(answer["text"] for answer in answers)),
                context=paragraph["context"],
                title=article.get("title", ""),
            )


def from_tfds_squad(features: Any) -> Example | None:
    """One example of TFDS's squad and tydi_qa; None for TyDiQA's other languages."""
    identifier = features["id"].decode()
    language, dash, _ = identifier.partition("-")
    if dash and language.isalpha() and language != "english" and "is_impossible" not in features:
        return None
    return Example(
        identifier,
        features["question"].decode(),
        tuple(dict.fromkeys(text.decode() for text in features["answers"]["text"])),
        context=features["context"].decode(),
        title=features["title"].decode(),
    )
