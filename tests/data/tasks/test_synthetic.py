"""What holds of every synthetic task."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from looped_jax.data.rows import PAD
from looped_jax.data.tasks import get_task, task_names
from looped_jax.data.tasks.base import BLOCK, SPLITS, content_hash, left_align
from looped_jax.errors import UserError

TASKS = [*task_names(), "group_a4_n5", "addition_n3", "phop_p1_n3"]


@pytest.mark.parametrize("name", TASKS)
def test_splits_never_share_an_example_whatever_their_seeds(name: str) -> None:
    task = get_task(name)
    if name == "phop_p1_n3":
        pytest.skip("36 examples in all: too few for three splits of 300 distinct ones")
    seen = {
        split: {
            tuple(row[row != PAD])
            for seed in (0, 1)
            for row in task.examples(seed, split, np.arange(300)).inputs_NS
        }
        for split in SPLITS
    }
    assert seen["train"].isdisjoint(seen["validation"])
    assert seen["train"].isdisjoint(seen["test"])
    assert seen["validation"].isdisjoint(seen["test"])


@pytest.mark.parametrize("name", TASKS)
def test_an_example_depends_on_seed_split_and_index_only(name: str) -> None:
    task = get_task(name)
    indices = np.array([BLOCK + 3, 0, 7, BLOCK - 1, 7])
    together = task.examples(5, "train", indices)
    for row, index in enumerate(indices):
        alone = task.examples(5, "train", np.array([index]))
        np.testing.assert_array_equal(together.inputs_NS[row], alone.inputs_NS[0])
        np.testing.assert_array_equal(together.answers_NA[row], alone.answers_NA[0])
    other = task.examples(6, "train", indices)
    assert not np.array_equal(other.inputs_NS, together.inputs_NS)


@pytest.mark.parametrize("name", TASKS)
def test_text_and_tokens_say_the_same(name: str) -> None:
    task = get_task(name)
    examples = task.examples(0, "validation", np.arange(50))
    assert examples.inputs_NS.max() < task.vocabulary.size
    assert examples.inputs_NS.shape[1] <= task.max_inputs
    assert examples.answers_NA.shape[1] <= task.max_answer
    for text, row in zip(
        task.texts(0, "validation", np.arange(50)), examples.inputs_NS, strict=True
    ):
        assert task.vocabulary.encode(text["inputs"]) == row[row != PAD].tolist()
        assert text["targets"]


@given(st.lists(st.integers(0, 5), min_size=1, max_size=9), st.integers(0, 4))
def test_the_hash_that_splits_examples_ignores_padding_and_nothing_else(
    row: list[int], pad: int
) -> None:
    tokens = [t for t in row if t != PAD] or [3]
    plain, wide = np.array([tokens]), np.array([tokens + [PAD] * pad])
    assert content_hash(plain) == content_hash(wide)
    changed = np.array([[*tokens[:-1], tokens[-1] + 1]])
    assert content_hash(plain) != content_hash(changed)


@settings(max_examples=50)
@given(st.lists(st.lists(st.integers(0, 3), min_size=4, max_size=4), min_size=1, max_size=6))
def test_left_align_keeps_order_and_loses_only_padding(rows: list[list[int]]) -> None:
    for before, after in zip(rows, left_align(np.array(rows)), strict=True):
        kept = [t for t in before if t != PAD]
        assert after.tolist() == kept + [PAD] * (len(after) - len(kept))


def test_a_task_with_too_few_examples_says_so() -> None:
    with pytest.raises(UserError, match="too few distinct examples"):
        get_task("group_z2_n1").examples(0, "test", np.arange(4))


def test_unknown_names_get_the_nearest_one() -> None:
    with pytest.raises(UserError, match="did you mean 'phop_p16_n256'"):
        get_task("phop_p16n256")
    for name, reason in (
        ("phop_p9_n8", "n >= 2 p"),
        ("group_s9_n4", "is not s2..s6"),
        ("group_s3_n0", "n must be at least 1"),
    ):
        with pytest.raises(UserError, match=reason):
            get_task(name)
