"""Math word problems: ASDiv, SVAMP and four sets of MAWPS, answered directly by a number.

5 shots of `Question: …`, `Answer:`; the first number of the output's first line counts.
"""

import json
import re
import xml.etree.ElementTree
from collections.abc import Iterator

from etils import epath

from looped_jax.data.tasks.downstream.base import DownstreamTask
from looped_jax.data.tasks.downstream.example import Example
from looped_jax.data.tasks.downstream.prompts import Style

_GROUP = "math_word_problems"


def _bare(example: Example) -> str:
    """The answer without its unit."""
    return re.sub(r"\s*\(.*\)", "", example.answers[0])


DEFAULT = Style(lambda e: f"Question: {e.question}\nAnswer:", answer=_bare)


def _number(value: float | str) -> str:
    """8.0 as 8."""
    return f"{float(value):.10g}"


def read_asdiv(path: epath.Path) -> Iterator[Example]:
    """ASDiv.xml: Problem elements with Body, Question and Answer."""
    root = xml.etree.ElementTree.fromstring(path.read_text())
    for problem in root.iter("Problem"):
        texts = {part: (problem.findtext(part) or "").strip() for part in ("Body", "Question")}
        answer = (problem.findtext("Answer") or "").strip()
        question = " ".join(filter(None, texts.values()))
        yield Example(problem.attrib["ID"], question, (answer,), fields={"body": texts["Body"]})


def read_svamp(path: epath.Path) -> Iterator[Example]:
    """SVAMP.json: [{ID, Body, Question, Answer}]."""
    for entry in json.loads(path.read_text()):
        body = entry["Body"].strip()
        body = body if body.endswith((".", "?", "!", ",")) else f"{body}."
        question = f"{body} {entry['Question'].strip()}"
        yield Example(entry["ID"], question, (_number(entry["Answer"]),))


def read_mawps(path: epath.Path) -> Iterator[Example]:
    """A MAWPS subset's JSON: [{iIndex, sQuestion, lSolutions}]."""
    for entry in json.loads(path.read_text()):
        answers = tuple(_number(solution) for solution in entry["lSolutions"])
        yield Example(f"{path.stem}-{entry['iIndex']}", entry["sQuestion"].strip(), answers)


def _where(file: str, paper: str, address: str) -> str:
    """Addresses name a commit, whose hash vouches for the content."""
    stem, dot, kind = file.partition(".")
    return (
        f"get {file} ({paper}) from https://github.com/{address}, and set some problems aside as "
        f"{stem}_train{dot}{kind} for exemplars"
    )


def _mawps(name: str, stem: str, *other_files: str, address: str) -> DownstreamTask:
    return DownstreamTask(
        name=name,
        group=_GROUP,
        metric="math_problems",
        styles={"default": DEFAULT},
        released={"train": (f"{stem}_train.json",), "validation": (f"{stem}.json", *other_files)},
        reader=read_mawps,
        where=_where(f"{stem}.json", "MAWPS, Koncel-Kedziorski et al. 2016", address),
    )


_ZERO_SHOT_COT = "kojima-takeshi188/zero_shot_cot/tree/5ef330fc/dataset"

TASKS = (
    DownstreamTask(
        name="asdiv",
        group=_GROUP,
        metric="math_problems",
        styles={"default": DEFAULT},
        released={"train": ("ASDiv_train.xml",), "validation": ("ASDiv.xml",)},
        reader=read_asdiv,
        where=_where(
            "ASDiv.xml",
            "Miao et al. 2020",
            "chaochun/nlu-asdiv-dataset/tree/883f90a9/dataset",
        ),
    ),
    _mawps("mawps_addsub", "AddSub", address=f"{_ZERO_SHOT_COT}/AddSub"),
    _mawps("mawps_multiarith", "MultiArith", address=f"{_ZERO_SHOT_COT}/MultiArith"),
    _mawps("mawps_singleeq", "SingleEq", "questions.json", address=f"{_ZERO_SHOT_COT}/SingleEq"),
    _mawps("mawps_singleop", "SingleOp", address="microsoft/ToRA/tree/213c1c99/src/data/mawps"),
    DownstreamTask(
        name="svamp",
        group=_GROUP,
        metric="math_problems",
        styles={"default": DEFAULT},
        released={"train": ("SVAMP_train.json",), "validation": ("SVAMP.json",)},
        reader=read_svamp,
        where=_where("SVAMP.json", "Patel et al. 2021", "arkilpatel/SVAMP/tree/689d7cca"),
    ),
)
