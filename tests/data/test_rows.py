import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from looped_jax.data.rows import BOS, PAD, answer_rows

tokens = st.lists(st.integers(3, 20), min_size=1, max_size=6)


def padded(lists: list[list[int]]) -> np.ndarray:
    width = max(map(len, lists))
    return np.array([x + [PAD] * (width - len(x)) for x in lists])


@given(st.lists(st.tuples(tokens, tokens), min_size=1, max_size=5))
def test_a_row_reads_the_inputs_and_predicts_each_answer_token(
    examples: list[tuple[list[int], list[int]]],
) -> None:
    inputs, answers = (list(column) for column in zip(*examples, strict=True))
    rows = answer_rows(padded(inputs), padded(answers), length=12)
    for i, (question, answer) in enumerate(examples):
        used = len(question) + len(answer)
        read = [BOS, *question, *answer[:-1]]
        assert rows["tokens"][i].tolist() == read + [PAD] * (12 - used)
        at = np.flatnonzero(rows["answer"][i])
        assert rows["targets"][i, at].tolist() == answer
        # The first answer token is predicted where the last input token is read.
        assert at[0] == len(question)
        np.testing.assert_array_equal(rows["loss_weights"][i] > 0, rows["answer"][i])
        np.testing.assert_array_equal(rows["segment_ids"][i], np.arange(12) < used)
        np.testing.assert_array_equal(rows["positions"][i, :used], np.arange(used))


def test_running_targets_are_trained_on_but_not_scored() -> None:
    rows = answer_rows(np.array([[5, 6, 7]]), np.array([[9]]), 4, np.array([[5, 8, 9]]))
    # Reading BOS predicts nothing, reading 5 the product 5, reading 6 8, and reading 7 the answer.
    assert rows["tokens"].tolist() == [[BOS, 5, 6, 7]]
    assert rows["targets"][0, 1:].tolist() == [5, 8, 9]
    assert rows["loss_weights"].tolist() == [[0, 1, 1, 1]]
    assert rows["answer"].tolist() == [[False, False, False, True]]


def test_an_example_longer_than_the_row_is_an_error() -> None:
    with pytest.raises(ValueError, match="an example has 4 tokens, the row only 3"):
        answer_rows(np.array([[5, 6, 7]]), np.array([[9]]), length=3)
