"""Changes inside the loops: each is what a model that is built so computes."""

import pathlib
import re
from typing import Any

import jax
import numpy as np
import pytest
from etils import epath
from helpers import random_params, small_config
from hypothesis import given
from hypothesis import strategies as st

from looped_jax.errors import UserError
from looped_jax.inside.interventions import Change, parse
from looped_jax.inside.opened import Opened
from looped_jax.training.job import make_job
from looped_jax.training.run import open_run
from looped_jax.training.trainer import train

PLAN = "1x1,2x3,1x1"
ROWS = [[1, 3, 5, 7, 4], [1, 6, 8, 2, 5]]


def made(folder: pathlib.Path, **options: Any) -> Opened:
    config = small_config(
        model__plan=PLAN, train__steps=1, eval__examples=8, mesh__data=1, **options
    )
    train(make_job(config), epath.Path(folder))
    run = open_run(str(folder))
    return Opened(run, random_params(run.job.model))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Opened:
    return made(tmp_path_factory.mktemp("plain") / "run")


@pytest.fixture(scope="module")
def with_own_parts(tmp_path_factory: pytest.TempPathFactory) -> Opened:
    """Each loop has a vector of its own."""
    return made(tmp_path_factory.mktemp("own") / "run", loop__per_loop="embedding")


def same(a: Any, b: Any) -> None:
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("skipped", [1, 2, 3])
def test_a_plain_loop_that_is_skipped_is_one_loop_less(plain: Opened, skipped: int) -> None:
    same(plain.intervened(f"skip:{skipped}").logits(ROWS), plain.with_loops(2).logits(ROWS))


def test_a_skipped_loop_ends_with_the_state_that_it_began_with(with_own_parts: Opened) -> None:
    states = with_own_parts.intervened("skip:2").states(ROWS)
    same(states[1], states[0])
    same(states[0], with_own_parts.states(ROWS)[0])
    assert not np.allclose(states[2], with_own_parts.states(ROWS)[2], atol=1e-2)


def test_an_order_goes_through_the_parameters_of_its_loops(with_own_parts: Opened) -> None:
    vectors = with_own_parts.params["per_loop"]["segment_1"]["per_loop"]["vector"]
    for order, places in {
        "order:3,1,2": [2, 0, 1],
        "order:2,2": [1, 1],
        "order:1,3": [0, 2],
    }.items():
        rows = jax.tree.map(lambda x: x, with_own_parts.params)
        own = rows["per_loop"]["segment_1"]["per_loop"]
        own["vector"] = np.concatenate([np.asarray(vectors)[places], np.asarray(vectors)])[:3]
        expected = Opened(with_own_parts.run, rows, len(places)).logits(ROWS)
        same(with_own_parts.intervened(order).logits(ROWS), expected)
    longer = with_own_parts.intervened("order:1,2,3,3").logits(ROWS)
    same(longer, with_own_parts.with_loops(4).logits(ROWS))  # Beyond the trained: the last again.


def test_a_layer_that_is_left_out_in_all_loops_is_a_layer_that_adds_nothing(plain: Opened) -> None:
    params = jax.tree.map(np.array, plain.params)
    layer = params["segment_1"]["layers"]["layer"]
    for kernel in (layer["attention"]["output"]["kernel"], layer["mlp"]["down"]["kernel"]):
        kernel[1] = 0.0
    expected = Opened(plain.run, params).logits(ROWS)
    same(plain.intervened("layer:1.2 layer:2.2 layer:3.2").logits(ROWS), expected)
    states = plain.intervened("layer:2.2").states(ROWS, layers=True)
    same(states[1, 1], states[1, 0])


def test_a_patch_puts_states_of_another_prompt_in_their_place(plain: Opened) -> None:
    other = [[1, 8, 8, 6, 2]]
    everywhere = plain.patched(other, 2, range(5))
    same(everywhere.logits(other), plain.logits(other))
    same(everywhere.logits(ROWS)[1], plain.logits(other)[0])
    here = plain.patched(other, 1, [3]).states(ROWS)
    same(here[0][:, 3], np.repeat(plain.states(other)[0][:, 3], 2, axis=0))
    same(here[0][:, :3], plain.states(ROWS)[0][:, :3])
    same(here[:, :, :3], plain.states(ROWS)[:, :, :3])  # No token sees what comes later.
    assert not np.allclose(here[2][:, 4], plain.states(ROWS)[2][:, 4], atol=1e-3)


def test_metrics_are_those_of_the_changed_model(plain: Opened) -> None:
    two, skipped = plain.with_loops(2).evaluate(), plain.intervened("skip:3").evaluate()
    assert skipped == pytest.approx(two, rel=1e-4) != pytest.approx(plain.evaluate(), rel=1e-4)
    # With the states of one row after the last loop, all are told the same.
    same_row = plain.patched([[1, 3, 5, 7, 4]], 3, range(5))
    assert same_row.evaluate() != pytest.approx(plain.evaluate(), rel=1e-4)


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("skip"), st.tuples(st.integers(0, 99))),
            st.tuples(st.just("layer"), st.tuples(st.integers(0, 9), st.integers(0, 9))),
            st.tuples(st.just("order"), st.lists(st.integers(0, 9), min_size=1).map(tuple)),
        ),
        min_size=1,
    )
)
def test_changes_are_read_as_they_are_written(parts: list[tuple[str, tuple[int, ...]]]) -> None:
    changes = tuple(Change(*part) for part in parts)
    assert parse(" ".join(map(str, changes))) == changes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("skip:4", "intervention skip:4: the model goes through 3 loops"),
        ("skip:0", "intervention skip:0: loops and layers are counted from 1"),
        ("layer:1.3", "intervention layer:1.3: a loop has 2 layers"),
        ("jump:1", "intervention 'jump:1' is none of skip:LOOP"),
        ("layer:2", "intervention 'layer:2' is none of"),
        ("", "an intervention is skip:LOOP"),
        ("order:1 order:2", "there can be one order"),
    ],
)
def test_what_is_not_there_cannot_be_changed(plain: Opened, text: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)) as raised:
        plain.intervened(text)
    assert "\n" not in str(raised.value)
    with pytest.raises(UserError, match="interventions are for logits"):
        plain.intervened("skip:1").generate("3 1")
    with pytest.raises(UserError, match="place 7: the rows have 5 tokens"):
        plain.patched(ROWS, 1, [7])
    with pytest.raises(UserError, match="place 4 is patched; the rows have 2"):
        plain.patched(ROWS, 1, [4]).logits([1, 3])
    with pytest.raises(UserError, match="evaluate patches all rows alike"):
        plain.patched(ROWS, 1, [4]).evaluate()
