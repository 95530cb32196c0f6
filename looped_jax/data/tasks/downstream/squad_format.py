"""SQuAD's JSON, which TyDiQA-GoldP and QuAC share, and its features in TFDS."""

import json
from collections.abc import Iterator
from typing import Any

from etils import epath

from looped_jax.data.tasks.downstream.base import Example


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
