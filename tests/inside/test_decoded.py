"""What states hold over many examples, and what changes inside cost."""

import dataclasses
import pathlib
from typing import Any

import jax
import numpy as np
import pytest
from etils import epath
from helpers import small_config, write_pile

from looped_jax.errors import UserError
from looped_jax.inside.decoded import Decoded, answered, decoded
from looped_jax.inside.effects import effects, usual_changes
from looped_jax.inside.explanation import explain, of_task
from looped_jax.inside.interventions import check, parse
from looped_jax.inside.opened import Opened, load
from looped_jax.inside.questions import questions
from looped_jax.models.loop_plan import LoopPlan
from looped_jax.models.transformer import LoopedTransformer
from looped_jax.training.job import make_job
from looped_jax.training.trainer import train

TASK = "group_z7_n4"


def made(folder: pathlib.Path, plan: str, **options: Any) -> Opened:
    config = small_config(
        model__plan=plan, train__steps=2, eval__examples=64, mesh__data=1, **options
    )
    train(make_job(config), epath.Path(folder))
    return load(folder)


@pytest.fixture(scope="module")
def looped(tmp_path_factory: pytest.TempPathFactory) -> Opened:
    return made(tmp_path_factory.mktemp("looped") / "run", "1x3", loop__per_loop="embedding")


@pytest.fixture(scope="module")
def not_looped(tmp_path_factory: pytest.TempPathFactory) -> Opened:
    return made(tmp_path_factory.mktemp("plain") / "run", "2x1")


@pytest.fixture(scope="module")
def held(looped: Opened) -> Decoded:
    return decoded(looped, examples=300)  # A batch, and a part of one.


def test_the_construction_holds_the_last_two_then_the_answer(held: Decoded) -> None:
    assert held.names == ("first 2", "first 3", "last 2", "last 3", "answer")
    assert held.built_QL is not None and held.built_QL.shape == (5, 2)
    of_name = dict(zip(held.names, held.built_QL, strict=True))
    assert of_name["last 2"][0] == of_name["answer"][1] == 1.0
    others = [of_name[name] for name in ("first 2", "first 3", "last 3")]
    # Seven classes and 300 examples of each split.
    assert np.max(np.concatenate([*others, of_name["answer"][:1], of_name["last 2"][1:]])) < 0.35


def test_examples_that_come_again_are_told(looped: Opened, held: Decoded) -> None:
    for split, count in zip(("validation", "test"), held.distinct, strict=True):
        rows = questions(looped, TASK, split, 300).tokens
        assert count == len({tuple(row) for row in rows}) < 300


def test_rows_of_a_large_vocabulary_go_through_in_small_parts(
    looped: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = questions(looped, TASK, "test", 20)
    whole = answered(looped, asked)
    monkeypatch.setattr("looped_jax.inside.decoded.MOST_LOGITS", 1)
    by_one = answered(looped, asked)
    np.testing.assert_allclose(by_one[0], whole[0])
    np.testing.assert_allclose(by_one[1], whole[1], rtol=1e-4, atol=1e-5)


def test_probes_of_a_model_that_learnt_nothing_are_as_those_of_a_fresh_one(held: Decoded) -> None:
    assert held.probed_QL.shape == held.fresh_QL.shape == (5, 3)
    assert not np.array_equal(held.probed_QL, held.fresh_QL)
    assert np.abs(held.probed_QL - held.fresh_QL).mean() < 0.15
    assert np.all(held.frequent_Q < 0.35)


def test_what_is_read_after_the_last_loop_is_what_the_model_says(
    looped: Opened, held: Decoded
) -> None:
    rows = looped.run.job.data.source("test").rows(np.arange(300))
    tokens = rows["tokens"][:, : int(rows["segment_ids"][0].sum())]
    for loops in (1, 3):
        cut = looped.with_loops(loops)
        said = cut.logits(tokens.tolist())[:, -1].argmax(-1)
        right = np.mean(said == rows["targets"][:, tokens.shape[1] - 1])
        assert held.read_L[loops - 1] == pytest.approx(right)


def test_of_a_plan_without_loops_layers_are_probed_and_left_out(not_looped: Opened) -> None:
    assert decoded(not_looped, examples=64).probed_QL.shape == (5, 2)
    assert usual_changes(not_looped) == ["layer:1.1", "layer:1.2"]
    gone = jax.tree.map(np.array, not_looped.params)
    layer = gone["segment_0"]["layers"]["layer"]
    for kernel in (layer["attention"]["output"]["kernel"], layer["mlp"]["down"]["kernel"]):
        kernel[1] = 0.0
    expected = dataclasses.replace(not_looped, params=gone).logits([1, 3, 4])
    found = not_looped.intervened("layer:1.2").logits([1, 3, 4])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match=r"no loops to change, only layers \(layer:1.LAYER\)"):
        not_looped.intervened("skip:1")


def test_effects_are_those_of_each_changed_model(looped: Opened) -> None:
    assert usual_changes(looped) == [
        *("skip:1", "skip:2", "skip:3"),
        *("order:1,1,2,3", "order:1,2,2,3", "order:1,2,3,3"),
        *("order:2,1,3", "order:1,3,2"),
    ]
    found = effects(looped, ["skip:2", "order:3,1"])
    assert found[""] == looped.evaluate()
    assert found["skip:2"] == looped.intervened("skip:2").evaluate() != found[""]
    with pytest.raises(UserError, match="skip:9"):
        effects(looped, ["skip:1", "skip:9"])


def test_the_usual_changes_are_such_as_the_model_can_have(looped: Opened) -> None:
    ordered = looped.intervened("order:1,3")
    assert usual_changes(ordered) == ["skip:1", "skip:2", "skip:3"]
    config = dataclasses.replace(looped.model.config, plan=LoopPlan.parse("2x2,1x3"), loop=())
    job = dataclasses.replace(looped.run.job, model=LoopedTransformer(config))
    two = dataclasses.replace(looped, run=dataclasses.replace(looped.run, job=job), params={})
    assert usual_changes(two) == ["skip:1", "skip:2", "order:1,1,2", "order:1,2,2"]
    for text in usual_changes(two):
        check(config, parse(text), None)


def test_the_page_shows_both(looped: Opened, held: Decoded) -> None:
    lost = effects(looped, ["skip:2"])
    document, data = explain(looped, of_task(looped, TASK, 0), None, held, lost)
    page = document.html()
    assert "What the state after each loop holds" in page and "last 2" in page
    assert "What each loop is needed for" in page and "skip:2" in page
    assert data["held"]["built_QL"] == held.as_json()["built_QL"]
    assert data["lost"] == lost


def test_the_page_of_a_plan_without_loops_speaks_of_layers(not_looped: Opened) -> None:
    document, data = explain(not_looped, of_task(not_looped, TASK, 0))
    titles = [section.title for section in document.sections]
    assert "What each layer would say" in titles and "At more loops" not in titles
    assert data["layers"] == 2 and len(data["lens"]["kl"]) == 2 and data["exits"] == {}


@pytest.fixture(scope="module")
def of_text(tmp_path_factory: pytest.TempPathFactory) -> Opened:
    folder = tmp_path_factory.mktemp("text")
    write_pile(folder / "pile")
    values: dict[str, Any] = dict(data__task="text", data__path=str(folder / "pile"))
    return made(folder / "run", "1x2", **values, data__length=96, eval__style="line")


def test_a_language_model_is_asked_variable_assignment_in_text(of_text: Opened) -> None:
    asked = questions(of_text, "varassign_depth0_math", "test", 40)
    for row, targets, answer_T, place in zip(
        asked.tokens, asked.targets, asked.answer_NT, asked.place_N, strict=True
    ):
        said = of_text.vocabulary.decode(row)
        answer = of_text.vocabulary.decode(np.asarray(targets)[answer_T[: len(row)]])
        values = dict(part.split("=") for part in said.partition("=?")[0].split(", ")[:-1])
        letter = said.partition("=?")[0][-1]
        assert answer == f" {values[letter]}\n"
        assert row[1:] == targets[:-1] and answer_T.sum() == len(answer)
        assert of_text.vocabulary.decode([targets[place]]) == values[letter][0]
    held = decoded(of_text, "varassign_depth0_math", examples=40)
    assert held.names == ("letter asked for", "its line", "answer") and held.built_QL is None
    assert held.probed_QL.shape == held.fresh_QL.shape == (3, 2)


@pytest.mark.parametrize("task", ["", "squad_v2", "igsm"])
def test_of_other_tasks_of_text_no_way_to_the_answer_is_known(of_text: Opened, task: str) -> None:
    with pytest.raises(UserError, match="a language model can be asked variable assignment"):
        decoded(of_text, task)
