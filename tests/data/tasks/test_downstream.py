"""Downstream tasks: every source format, prompts that fit, and what is missing is said."""

import json
import os
import pathlib

import pytest
from etils import epath
from helpers import NEEDS_TENSORFLOW
from hypothesis import given
from hypothesis import strategies as st

from looped_jax.data.tasks.downstream import TASKS, expand, group_members
from looped_jax.data.tasks.downstream.base import GROUPS, DownstreamTask
from looped_jax.data.tasks.downstream.example import Example
from looped_jax.data.tasks.downstream.local_files import read_simple
from looped_jax.data.tasks.downstream.prompts import Style, build_prompt, draw_exemplars
from looped_jax.errors import UserError

SQUAD = {
    "data": [
        {
            "title": "Black_Holes",
            "paragraphs": [
                {
                    "context": "Nothing escapes.",
                    "qas": [
                        {
                            "id": "q1",
                            "question": "What escapes?",
                            "answers": [{"text": "Nothing"}, {"text": "Nothing"}],
                            "is_impossible": False,
                        },
                        {
                            "id": "q2",
                            "question": "Why?",
                            "answers": [],
                            "plausible_answers": [{"text": "gravity"}],
                            "is_impossible": True,
                        },
                    ],
                }
            ],
        }
    ]
}
TYDI = {
    "data": [
        {
            "paragraphs": [
                {
                    "context": "On 7 May.",
                    "qas": [
                        {"id": "english--1", "question": "When?", "answers": [{"text": "7 May"}]},
                        {"id": "finnish--2", "question": "Milloin?", "answers": [{"text": "7."}]},
                    ],
                }
            ]
        }
    ]
}
EMPTY_DATE = {"day": "", "month": "", "year": ""}
DROP = {
    "history_1": {
        "passage": "A and B fought in 1990.",
        "qa_pairs": [
            {
                "query_id": "d1",
                "question": "Who fought?",
                "answer": {"number": "", "date": EMPTY_DATE, "spans": ["A", "B"]},
                "validated_answers": [{"number": "2", "date": EMPTY_DATE, "spans": []}],
            }
        ],
    }
}
QUAC = {
    "data": [
        {
            "title": "Anna",
            "section_title": "Songs",
            "paragraphs": [
                {
                    "id": "C_1",
                    "context": "She sang. CANNOTANSWER",
                    "qas": [
                        {
                            "id": "C_1_q#0",
                            "question": "what?",
                            "answers": [{"text": "She sang"}, {"text": "sang"}],
                            "orig_answer": {"text": "sang"},
                        },
                        {
                            "id": "C_1_q#1",
                            "question": "when?",
                            "answers": [{"text": "CANNOTANSWER"}],
                            "orig_answer": {"text": "CANNOTANSWER"},
                        },
                    ],
                }
            ],
        }
    ]
}
COQA = {
    "data": [
        {
            "source": "mctest",
            "id": "s1",
            "story": "A white cat.",
            "questions": [
                {"input_text": "What color?", "turn_id": 1},
                {"input_text": "What is it?", "turn_id": 2},
            ],
            "answers": [
                {"input_text": "white", "turn_id": 1},
                {"input_text": "a cat", "turn_id": 2},
            ],
            "additional_answers": {
                "0": [
                    {"input_text": "White", "turn_id": 1},
                    {"input_text": "cat", "turn_id": 2},
                ]
            },
        }
    ]
}
TRIVIA = {
    "Data": [
        {
            "QuestionId": "tc_1",
            "Question": "Who sang?",
            "Answer": {
                "Value": "David Seville",
                "NormalizedAliases": ["david seville", "seville"],
                "HumanAnswers": ["Dave"],
            },
        }
    ]
}
ASDIV = (
    "<A><P><Problem ID='n1' Grade='1'><Body>Seven apples and two.</Body>"
    "<Question>How many?</Question><Answer>9 (apples)</Answer></Problem></P></A>"
)
SVAMP = [{"ID": "c1", "Body": "Two and two", "Question": "How many?", "Answer": 4.0}]
MAWPS = [{"iIndex": 7, "sQuestion": " 1 and 2 ? ", "lSolutions": [3.0]}]

# task -> (released file, its content, expected examples in brief: id, question, answers)
RELEASED = {
    "squad_v2": (
        "dev-v2.0.json",
        json.dumps(SQUAD),
        [("q1", "What escapes?", ("Nothing",)), ("q2", "Why?", ())],
    ),
    "tydiqa_goldp": (
        "tydiqa-goldp-v1.1-dev.json",
        json.dumps(TYDI),
        [("english--1", "When?", ("7 May",))],
    ),
    "drop": ("drop_dataset_dev.json", json.dumps(DROP), [("d1", "Who fought?", ("A, B", "2"))]),
    "quac": (
        "val_v0.2.json",
        json.dumps(QUAC),
        [
            ("C_1_q#0", "what?", ("She sang", "sang")),
            ("C_1_q#1", "when?", ("CANNOTANSWER",)),
        ],
    ),
    "coqa": (
        "coqa-dev-v1.0.json",
        json.dumps(COQA),
        [
            ("s1_q#1", "What color?", ("white", "White")),
            ("s1_q#2", "What is it?", ("a cat", "cat")),
        ],
    ),
    "triviaqa": (
        "unfiltered-web-dev.json",
        json.dumps(TRIVIA),
        [("tc_1", "Who sang?", ("david seville", "seville", "Dave"))],
    ),
    "natural_questions": (
        "NQ-open.dev.jsonl",
        '{"question": "who", "answer": ["A", "B"]}\n',
        [("nq-0", "who", ("A", "B"))],
    ),
    "web_questions": (
        "test.json",
        json.dumps([{"qId": "w1", "qText": "what?", "answers": ["x"]}]),
        [("w1", "what?", ("x",))],
    ),
    "asdiv": ("ASDiv.xml", ASDIV, [("n1", "Seven apples and two. How many?", ("9 (apples)",))]),
    "svamp": ("SVAMP.json", json.dumps(SVAMP), [("c1", "Two and two. How many?", ("4",))]),
    "mawps_addsub": ("AddSub.json", json.dumps(MAWPS), [("AddSub-7", "1 and 2 ?", ("3",))]),
}


def released(task: str, folder: pathlib.Path) -> list[Example]:
    name, content, _ = RELEASED[task]
    (folder / name).write_text(content)
    return TASKS[task].examples("validation", str(folder))


@pytest.mark.parametrize("task", RELEASED)
def test_the_released_format_is_read(task: str, tmp_path: pathlib.Path) -> None:
    found = [(e.id, e.question, e.answers) for e in released(task, tmp_path)]
    assert found == RELEASED[task][2]


def test_a_dialogue_carries_what_was_said_so_far(tmp_path: pathlib.Path) -> None:
    first, second = released("coqa", tmp_path)
    assert first.history == ()
    assert second.history == (("What color?", "white"),)
    prompt = TASKS["coqa"].style("default").question(second)
    assert prompt == "A white cat.\n\nQ: What color?\nA: white\nQ: What is it?\nA:"
    _, second = released("quac", tmp_path)
    # The first person's own answer, and the passage without the marker.
    prompt = TASKS["quac"].style("default").question(second)
    assert prompt == "TITLE: Anna - Songs\nPARAGRAPH: She sang.\n\nQ: what?\nA: sang\nQ: when?\nA:"


def test_prompts_and_targets_of_each_kind(tmp_path: pathlib.Path) -> None:
    def shown(task: str, style: str = "default") -> list[str]:
        own = TASKS[task].style(style)
        return [f"{own.question(e)} {own.answer(e)}" for e in released(task, tmp_path)]

    passage = "Title: Black Holes\nBackground: Nothing escapes.\nQ: "
    assert shown("squad_v2") == [
        f"{passage}What escapes?\nA: Nothing",
        f"{passage}Why?\nA: unanswerable",
    ]
    assert shown("drop") == [
        "Passage: A and B fought in 1990.\nQuestion: Who fought?\nAnswer: A, B"
    ]
    assert shown("triviaqa") == ["Q: Who sang?\nA: David Seville"]
    assert shown("triviaqa", "gpt3") == ["Q: Who sang?\n\nA: David Seville"]
    assert shown("triviaqa", "lm_eval") == ["Question: Who sang??\nAnswer: David Seville"]
    assert shown("asdiv") == ["Question: Seven apples and two. How many?\nAnswer: 9"]


def test_predictions_are_taken_from_the_output_as_the_task_says() -> None:
    squad, drop = TASKS["squad_v2"].extract, TASKS["drop"].extract
    assert [squad(t) for t in (" Unanswerable.", " 7 May")] == ["", "7 May"]
    assert drop(" A, B ") == ["A", "B"]
    assert drop("1,000") == ["1,000"]
    assert drop(" ") == [""]


def test_variable_assignment_is_generated_and_its_line_form_says_the_same() -> None:
    for name in group_members("reasoning_primitives"):
        task = TASKS[name]
        train, held_out = (task.examples(split, count=50) for split in ("train", "validation"))
        assert not {e.question for e in train} & {e.question for e in held_out}
        for example in held_out:
            line = task.style("line").question(example)
            *assignments, asked = line.split(", ")
            values = dict(a.split("=") for a in assignments)
            value = values[asked.removesuffix("=?")]
            assert values.get(value, value) == example.answers[0]
            assert len(values) == (5 if "depth0" in name else 10)


SIMPLE = [
    {"id": "1", "question": "a?", "context": None, "answers": ["x"], "split": "fewshot"},
    {"id": "2", "question": "b?", "context": "c", "answers": [], "split": "eval", "more": 1},
]


def write_simple(path: pathlib.Path, *records: object) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def test_the_simple_form_is_read_and_keeps_what_the_metric_may_need(
    tmp_path: pathlib.Path,
) -> None:
    write_simple(tmp_path / "svamp.jsonl", *SIMPLE)
    task = TASKS["svamp"]
    assert task.examples("train", str(tmp_path)) == [Example("1", "a?", ("x",))]
    (example,) = task.examples("validation", str(tmp_path))
    assert example == Example("2", "b?", (), context="c", fields={"more": 1})


@pytest.mark.parametrize(
    ("records", "message"),
    [
        (["no object"], "line 1: not a JSON object"),
        ([SIMPLE[0], {"id": "3"}], 'line 2: no "answers" list'),
        ([{"id": "3", "answers": []}], 'line 1: not an example: no "question"'),
        ([{**SIMPLE[0], "split": "dev"}], """line 1: "split" is 'dev', not "fewshot" or "eval\""""),
        (
            [{**SIMPLE[0], "answers": "Paris"}],
            "line 1: \"answers\" is 'Paris', not a list of texts",
        ),
        ([{**SIMPLE[0], "answers": [None]}], r'"answers" is \[None\], not a list of texts'),
        ([{**SIMPLE[0], "question": 7}], 'line 1: "question" is 7, not a text'),
        ([{**SIMPLE[0], "history": [{"question": "a"}]}], 'line 1: "history" is .*, not '),
        ([{**SIMPLE[0], "history": 3}], 'line 1: "history" is 3, not '),
        ([{**SIMPLE[0], "drop_answers": "3"}], "line 1: \"drop_answers\" is '3', not "),
        ([{**SIMPLE[0], "answers": ["\ud800"]}], "line 1: a lone surrogate, so not Unicode text"),
        ([SIMPLE[1], SIMPLE[1]], "line 2: id '2' occurs twice"),
        ([SIMPLE[0]], "has no example with split 'eval'"),
    ],
)
def test_bad_lines_are_named(records: list, message: str, tmp_path: pathlib.Path) -> None:
    write_simple(tmp_path / "svamp.jsonl", *records)
    with pytest.raises(UserError, match=message):
        TASKS["svamp"].examples("validation", str(tmp_path))


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["id", "question", "answers", "context", "history", "answer", "text"])
            | st.text(max_size=2),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(
    st.fixed_dictionaries(
        {"id": json_values, "question": json_values, "answers": json_values},
        optional={
            "context": json_values,
            "title": json_values,
            "history": json_values,
            "drop_answers": json_values,
            "dialogue_id": json_values,
        },
    )
)
def test_any_line_of_the_simple_form_is_an_example_of_texts_or_named(
    tmp_path_factory: pytest.TempPathFactory, record: dict
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_text(json.dumps({**record, "split": "eval"}) + "\n")
    try:
        (example,) = read_simple(epath.Path(path), "validation")
    except UserError as error:
        assert f"{path}, line 1: " in str(error)
        return
    said = [part for turn in example.history for part in turn]
    texts = [example.id, example.question, example.context, example.title, *example.answers, *said]
    assert all(type(text) is str and text.encode() is not None for text in texts)
    assert isinstance(example.dialogue, str)


@pytest.mark.parametrize("task", sorted(RELEASED))
@given(value=json_values)
def test_any_json_in_place_of_a_release_is_read_or_named(
    tmp_path_factory: pytest.TempPathFactory, task: str, value: object
) -> None:
    folder = tmp_path_factory.getbasetemp()
    (folder / RELEASED[task][0]).write_text(json.dumps(value))
    try:
        TASKS[task].examples("validation", str(folder))
    except UserError as error:
        assert RELEASED[task][0] in str(error)


@pytest.mark.parametrize(
    "content",
    [b"\xff", b"[" * 100_000, b'{"data": ' + b"1" * 5000 + b"}", b"<A><P>"],
    ids=["not UTF-8", "deep", "long number", "cut"],
)
@pytest.mark.parametrize("task", ["squad_v2", "asdiv"])
def test_a_damaged_release_is_named(task: str, content: bytes, tmp_path: pathlib.Path) -> None:
    (tmp_path / RELEASED[task][0]).write_bytes(content)
    with pytest.raises(UserError, match=f"{RELEASED[task][0]} is not in the released format"):
        TASKS[task].examples("validation", str(tmp_path))


def test_squads_own_answers_are_taken_as_their_texts(tmp_path: pathlib.Path) -> None:
    answers = [{"text": "Paris", "answer_start": 3}, {"text": "paris", "answer_start": 9}]
    write_simple(tmp_path / "squad_v2.jsonl", {**SIMPLE[1], "answers": answers})
    (example,) = TASKS["squad_v2"].examples("validation", str(tmp_path))
    assert example.answers == ("Paris", "paris")


def test_a_file_in_another_format_is_named(tmp_path: pathlib.Path) -> None:
    (tmp_path / "dev-v2.0.json").write_text('{"data": [{"paragraph": []}]}')
    with pytest.raises(UserError, match=r"dev-v2.0.json is not in the released format"):
        TASKS["squad_v2"].examples("validation", str(tmp_path))


@pytest.mark.parametrize("name", sorted(set(TASKS) - set(group_members("reasoning_primitives"))))
def test_a_missing_set_says_where_to_get_it(name: str, tmp_path: pathlib.Path) -> None:
    with pytest.raises(UserError, match=f"task {name}: no {name}.jsonl.*; get .*https://"):
        TASKS[name].examples("validation", str(tmp_path))
    if TASKS[name].tfds is None:
        with pytest.raises(UserError, match=r"set --config.eval.data_dir .*; get .*https://"):
            TASKS[name].examples("validation")


def test_exemplars_are_the_same_for_everybody() -> None:
    pool = [Example(str(i), "q", ("a",)) for i in range(20)]
    drawn = draw_exemplars(pool, 5)
    assert drawn == draw_exemplars(pool[::-1], 5)
    assert len({e.id for e in drawn}) == 5
    with pytest.raises(UserError, match="21 shots were asked for, the training split has 20"):
        draw_exemplars(pool, 21)


def test_an_exemplar_of_a_conversation_is_all_of_it() -> None:
    pool = [
        Example(f"d{d}_{t}", f"q{t}", ("a",), history=(("q", "a"),) * t, fields={"dialogue_id": d})
        for d in range(3)
        for t in range(4)
    ]
    drawn = draw_exemplars(pool, 3)
    assert sorted(e.id for e in drawn) == ["d0_3", "d1_3", "d2_3"]
    with pytest.raises(UserError, match="4 shots were asked for, the training split has 3"):
        draw_exemplars(pool, 4)


STYLE = Style(lambda e: f"{e.context}|{[q for q, _ in e.history]}|Q: {e.question}\nA:")
words = st.lists(st.sampled_from(["one", "two", "three"]), max_size=12).map(" ".join)


@given(words, st.lists(words, max_size=4), st.integers(0, 4), st.integers(0, 260))
def test_a_prompt_that_does_not_fit_loses_its_front_never_its_question(
    context: str, turns: list[str], shots: int, room: int
) -> None:
    example = Example("x", "What?", ("a",), context, history=tuple((t, "y") for t in turns))
    exemplars = [Example(str(i), f"q{i}", ("e",), "some context") for i in range(shots)]
    prompt = build_prompt(STYLE, example, exemplars, lambda text: len(text) <= room)
    assert prompt.text.endswith("Q: What?\nA:")
    assert prompt.too_long == (len(prompt.text) > room)
    assert prompt.exemplars == tuple(str(i) for i in range(prompt.dropped, shots))
    if not prompt.context_cut:
        assert STYLE.question(example) in prompt.text
        # As many exemplars as fit.
        if prompt.dropped:
            longer = [*exemplars[prompt.dropped - 1 :]]
            whole = build_prompt(STYLE, example, longer, lambda _: True)
            assert len(whole.text) > room
    elif prompt.too_long:
        assert prompt.text == "|[]|Q: What?\nA:"


@pytest.mark.parametrize(
    ("context", "kept"),
    [
        ("eins zwei drei vier", "drei vier"),
        ("eins\nzwei\ndrei\nvier", "drei\nvier"),
        ("eins\u3000zwei\tdrei  vier", "drei  vier"),
        ("色はにほへど散りぬるを" * 20, "散りぬるを色はにほへど散りぬるを"[-11:]),
        ("eins " + "x" * 100, "x" * 11),
        ("eins zwei dreivierfünfsechs", ""),
    ],
    ids=["blanks", "lines", "other blanks", "without blanks", "one long word", "a fragment"],
)
def test_a_context_that_is_too_long_loses_as_little_as_can_be(context: str, kept: str) -> None:
    example = Example("x", "What?", ("a",), context)
    rest = "|[]|Q: What?\nA:"
    prompt = build_prompt(STYLE, example, [], lambda text: len(text) <= 11 + len(rest))
    assert prompt.context_cut and not prompt.too_long
    assert prompt.text == kept + rest


def test_groups_and_the_papers_list() -> None:
    assert len(expand(("paper",))) == 19
    assert [len(group_members(group)) for group in GROUPS] == [4, 5, 6, 4]
    assert expand(("svamp", "math_word_problems", "svamp"))[0] == "svamp"
    assert len(expand(("svamp", "math_word_problems"))) == 6
    with pytest.raises(UserError, match="no downstream task 'swamp'; did you mean 'svamp'"):
        expand(("swamp",))


@pytest.mark.parametrize("name", [n for n, task in TASKS.items() if task.tfds])
def test_tfds_builders_have_what_a_task_needs(name: str) -> None:
    tfds = pytest.importorskip("tensorflow_datasets", reason=NEEDS_TENSORFLOW)

    task = TASKS[name]
    assert task.tfds is not None
    builder_name, splits, to_example = task.tfds
    with tfds.testing.mock_data(num_examples=3):
        try:
            builder = tfds.builder(builder_name)
        except tfds.core.registered.DatasetNotFoundError as error:
            pytest.skip(f"this TFDS cannot make {builder_name} offline: {error}")
        for split in splits.values():
            for features in tfds.as_numpy(builder.as_dataset(split=split)):
                try:
                    example = to_example(features)
                except UnicodeDecodeError:
                    continue  # Mock texts are random bytes.
                assert example is None or example.question is not None


@pytest.mark.parametrize("name", TASKS)
def test_real_samples_are_read(name: str) -> None:
    folder = os.environ.get("EVALS_DIR")
    if not folder:
        pytest.skip("EVALS_DIR names no folder of real samples (docs/evaluate.md)")
    task = TASKS[name]
    examples = task.examples("validation", folder)
    train = task.examples("train", folder)
    assert len({e.id for e in examples}) == len(examples) > 100
    assert not {e.id for e in examples} & {e.id for e in train}
    for example in train[: task.shots]:
        assert task.style("default").answer(example)


def test_a_task_is_one_short_declaration(tmp_path: pathlib.Path) -> None:
    """What docs/tasks.md shows."""
    task = DownstreamTask(
        name="capitals",
        group="closed_book_qa",
        metric="open_domain",
        styles={"default": Style(lambda e: f"Q: What is the capital of {e.question}?\nA:")},
        where="write it yourself",
    )
    write_simple(tmp_path / "capitals.jsonl", *SIMPLE)
    assert len(task.examples("validation", str(epath.Path(tmp_path)))) == 1
