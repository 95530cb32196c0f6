"""What could be on the way to an answer: by its definition, example by example."""

import functools
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from looped_jax.data.rows import FIRST_FREE_ID
from looped_jax.data.tasks import get_task
from looped_jax.data.tasks.group import group_table
from looped_jax.data.tasks.phop import hop
from looped_jax.inside.quantities import quantities


def labels_of(name: str, index: int) -> tuple[dict[str, int], str, str]:
    """Quantity -> its class, and the text of the example and of its answer."""
    task = get_task(name)
    one = np.asarray([index])
    found = quantities(task, task.examples(0, "validation", one))
    (text,) = task.texts(0, "validation", one)
    assert all(0 <= q.label_N[0] < q.classes for q in found)
    return {q.name: int(q.label_N[0]) for q in found}, text["inputs"], text["targets"]


@given(st.integers(0, 500), st.integers(1, 4))
def test_hops_are_those_of_the_definition(index: int, hops: int) -> None:
    found, text, answer = labels_of(f"phop_p{hops}_n16", index)
    for number in range(1, hops + 1):
        place = found[f"place of hop {number}"]
        assert text[place] == hop(text, number)
        if number < hops:
            assert "abcd"[found[f"character of hop {number}"]] == text[place]
    assert "abcd"[found["answer"]] == answer


def test_of_many_characters_there_are_no_places() -> None:
    found, _, _ = labels_of("phop_p2_n256", 0)
    assert list(found) == ["character of hop 1", "answer"]


@given(st.integers(0, 500))
def test_products_are_of_the_first_and_the_last_elements(index: int) -> None:
    found, text, answer = labels_of("group_s3_n5", index)
    names, table = group_table("s3")
    elements = [names.index(word) for word in text.split()]

    def product(part: list[int]) -> int:
        return functools.reduce(lambda g, h: int(table[g, h]), part)

    assert names[found["answer"]] == answer
    for count in (2, 3, 4):
        assert found[f"first {count}"] == product(elements[:count])
        assert found[f"last {count}"] == product(elements[-count:])
    assert len(found) == 7


@pytest.mark.parametrize("form", ["math", "code"])
@given(index=st.integers(0, 500))
def test_a_letter_stands_for_another_whose_line_has_the_value(form: str, index: int) -> None:
    found, text, answer = labels_of(f"varassign_depth1_{form}", index)
    lines = re.findall(r"^([a-z]) ?= ?([a-z0-9]+)$", text, flags=re.MULTILINE)
    asked = re.search(r"value of ([a-z])\?", text)
    assert asked is not None and len(lines) == 10
    assert chr(97 + found["letter asked for"]) == asked[1]
    letter, other = lines[5 + found["its line"]]
    assert letter == asked[1] and other == chr(97 + found["letter it stands for"])
    letter, value = lines[found["that letter's line"]]
    assert (letter, value) == (other, answer)
    vocabulary = get_task(f"varassign_depth1_{form}").vocabulary
    assert vocabulary.decode(np.asarray([FIRST_FREE_ID + found["answer"]])) == answer


def test_at_depth_0_the_letter_has_its_own_line() -> None:
    found, text, answer = labels_of("varassign_depth0_math", 7)
    lines = re.findall(r"^([a-z])=([0-9]+)$", text, flags=re.MULTILINE)
    assert lines[found["its line"]] == (chr(97 + found["letter asked for"]), answer)


def test_of_other_tasks_it_is_the_answer() -> None:
    found, _, _ = labels_of("igsm", 3)
    assert list(found) == ["answer"]
