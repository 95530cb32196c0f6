"""The command `python -m looped_jax.score`."""

import json
import pathlib
from collections.abc import Callable

import pytest
from etils import epath
from hypothesis import given
from hypothesis import strategies as st

from looped_jax.data.tasks.downstream import TASKS
from looped_jax.errors import UserError
from looped_jax.evaluation.metrics import drop, metric_of
from looped_jax.score import read_records


def write(path: pathlib.Path, *records: object) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return f"--input={path}"


def test_a_file_is_scored_and_what_is_odd_is_counted(
    tmp_path: pathlib.Path, run_module: Callable
) -> None:
    file = write(
        tmp_path / "p.jsonl",
        {"id": "1", "prediction": "Paris", "answers": ["paris"]},
        {"id": "1", "prediction": "Rome", "answers": ["paris"]},
        {"prediction": "x", "answers": ["y"]},
        {"id": "3", "answers": ["z"]},
        {"id": "4", "prediction": "z", "answers": []},
    )
    done = run_module("looped_jax.score", "--task=triviaqa", file)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "task": "triviaqa",
        "examples": 4,
        "exact": pytest.approx(100 / 3),
        "f1": pytest.approx(100 / 3),
        "duplicate_ids_left_out": 1,
        "lines_without_id": 1,
        "missing_predictions": 1,
        "examples_without_answers": 1,
    }


@pytest.mark.parametrize(
    ("arguments", "content", "message"),
    [
        ((), "", "say --task=NAME and --input=FILE"),
        (("--task=squad",), '{"answers": []}\n', "did you mean 'squad_v2'"),
        (("--task=drop",), "", "has no records"),
        (("--task=drop",), '{"answers": ["x"]}\nnonsense\n', "line 2: not JSON"),
        (("--task=drop",), '{"prediction": "x"}\n', 'line 1: no "answers" list'),
        (("--task=drop",), '{"answers": "Paris"}\n', "line 1: \"answers\" is 'Paris', not a list"),
    ],
)
def test_bad_input_gets_one_line(
    arguments: tuple,
    content: str,
    message: str,
    tmp_path: pathlib.Path,
    fails_in_one_line: Callable,
) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(content)
    file = (f"--input={path}",) if arguments else ()
    assert message in fails_in_one_line("looped_jax.score", *arguments, *file)


def test_a_missing_file_is_named(fails_in_one_line: Callable) -> None:
    line = fails_in_one_line("looped_jax.score", "--task=drop", "--input=/nowhere.jsonl")
    assert "no file /nowhere.jsonl" in line


def records_of(path: pathlib.Path, content: str | bytes, spans: bool = False) -> list[dict]:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_records(epath.Path(path), spans)[0]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('"text"', "not a JSON object"),
        ('{"answers": null}', 'no "answers" list'),
        ('{"answers": [null]}', '"answers" is [None], not a list of texts, e.g. ["Paris"]'),
        ('{"answers": [3]}', '"answers" is [3], not a list of texts'),
        ('{"answers": [{"answer": "x"}]}', "\"answers\" is [{'answer': 'x'}], not a list of texts"),
        ('{"answers": {"text": ["x"]}}', "not a list of texts"),
        ('{"answers": ["4"], "prediction": 4}', '"prediction" is 4, not a text'),
        ('{"answers": ["4"], "prediction": ["4"]}', "\"prediction\" is ['4'], not a text"),
        ('{"answers": [], "no_answer_probability": "0.9"}', "is '0.9', not a number from 0 to 1"),
        ('{"answers": [], "no_answer_probability": 1.5}', "is 1.5, not a number from 0 to 1"),
        ('{"answers": [], "no_answer_probability": NaN}', "is nan, not a number from 0 to 1"),
        ('{"answers": [], "no_answer_probability": true}', "is True, not a number from 0 to 1"),
        ('{"answers": [], "drop_answers": {}}', '"drop_answers" is {}, not a list of {"number"'),
        ('{"answers": [], "drop_answers": ["3"]}', "\"drop_answers\" is ['3'], not a list"),
        ('{"answers": [], "drop_answers": [{"number": 3}]}', "\"drop_answers\" is [{'number': 3}]"),
        ('{"answers": [], "id": [1]}', '"id" is [1], not a text or a whole number'),
        (b'{"answers": ["\xff"]}', "not UTF-8 at its byte 14"),
        ('{"answers": [], "n": ' + "1" * 5000 + "}", "a number with too many digits"),
        ("[" * 100_000, "nested too deeply"),
        ('{"answers": [], "x": ' + "[" * 900 + "]" * 900 + ', "id": true}', '"id" is True'),
    ],
    ids=lambda value: value[:60] if isinstance(value, str) else None,
)
def test_a_line_of_another_form_is_refused_by_line_and_key(
    line: str | bytes, message: str, tmp_path: pathlib.Path
) -> None:
    good = b'{"answers": ["x"], "prediction": "x"}\n'
    content = good + (line.encode() if isinstance(line, str) else line)
    with pytest.raises(UserError) as error:
        records_of(tmp_path / "p.jsonl", content)
    assert str(error.value).startswith(f"{tmp_path / 'p.jsonl'}, line 2: ")
    assert message in str(error.value)


def test_squads_own_answers_are_taken_as_their_texts(tmp_path: pathlib.Path) -> None:
    line = '{"prediction": "Paris", "answers": [{"text": "Paris", "answer_start": 3}]}'
    assert metric_of("squad_v2")(records_of(tmp_path / "p.jsonl", line)).totals["exact"] == 100


def test_lines_whose_id_is_null_are_lines_without_id(tmp_path: pathlib.Path) -> None:
    line = '{"id": null, "prediction": "x", "answers": ["x"]}\n'
    path = tmp_path / "p.jsonl"
    path.write_text(3 * line)
    records, counts = read_records(epath.Path(path))
    assert len(records) == 3
    assert counts == {"lines_without_id": 3}


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)
texts = st.text(max_size=6) | st.sampled_from(["1/2", "CANNOTANSWER", "the", "3 4/5", "1e999"])
drop_answers = st.fixed_dictionaries(
    {},
    optional={
        "number": texts | st.none(),
        "spans": st.lists(texts, max_size=3) | st.none(),
        "date": st.none() | st.dictionaries(st.sampled_from(["day", "month", "year"]), texts),
    },
)


def mostly(right: st.SearchStrategy) -> st.SearchStrategy:
    return st.one_of(right, right, right, json_values)


lines = st.fixed_dictionaries(
    {"answers": mostly(st.lists(texts, max_size=3))},
    optional={
        "prediction": mostly(texts | st.lists(texts, max_size=3)),
        "id": mostly(texts | st.integers() | st.none()),
        "no_answer_probability": mostly(st.floats(0, 1)),
        "drop_answers": mostly(st.lists(drop_answers, max_size=2)),
        "dialogue_id": mostly(texts),
        "domain": mostly(texts),
    },
)


@pytest.mark.parametrize("task", ["igsm", *TASKS])
@given(st.lists(lines, min_size=1, max_size=3))
def test_any_json_object_as_a_line_gives_a_score_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, task: str, given_lines: list[dict]
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    content = "".join(json.dumps(line) + "\n" for line in given_lines)
    metric = metric_of(task)
    try:
        report = metric(records_of(path, content, spans=metric is drop))
    except UserError as error:
        assert "\n" not in str(error)
        return
    assert all(0 <= value <= 100 for value in report.totals.values())
