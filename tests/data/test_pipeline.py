import numpy as np
import pytest
from helpers import share, small_config
from hypothesis import given
from hypothesis import strategies as st

from looped_jax.config import ConfigDict
from looped_jax.data import pipeline
from looped_jax.data.documents import Document, Turn
from looped_jax.data.run_data import resolve
from looped_jax.data.text import TextRows, pack_in_memory
from looped_jax.data.vocabulary import Bytes
from looped_jax.errors import UserError


def first_batches(config: ConfigDict, count: int, local: np.ndarray | None = None) -> list:
    batches = pipeline.train_batches(resolve(config), config, local)
    return [next(batches) for _ in range(count)]


def packed(texts: list[str], length: int) -> TextRows:
    return pack_in_memory((Document((Turn("", text),), "x") for text in texts), Bytes(), length)


def assert_same(a: dict, b: dict) -> None:
    assert set(a) == set(b)
    for key in a:
        np.testing.assert_array_equal(a[key], b[key])


def test_batches_follow_from_the_seed() -> None:
    for a, b in zip(*(first_batches(small_config(), 3) for _ in range(2)), strict=True):
        assert_same(a, b)
    other = first_batches(small_config(seed=1), 1)[0]
    assert not np.array_equal(other["tokens"], first_batches(small_config(), 1)[0]["tokens"])


def test_an_iterator_goes_on_exactly_from_its_saved_state() -> None:
    config = small_config()
    source = resolve(config).source("train")
    iterator = pipeline.train_batches(resolve(config), config, source=source)
    for _ in range(3):
        next(iterator)
    state = iterator.state()
    expected = [next(iterator) for _ in range(3)]
    fresh = pipeline.train_batches(resolve(config), config, source=source)
    fresh.set_state(state)
    for batch in expected:
        assert_same(next(fresh), batch)


def test_processes_share_the_batch_of_one() -> None:
    config = small_config()
    whole = first_batches(config, 2)
    parts = [first_batches(config, 2, share(i, 4, config.train.batch_size)) for i in range(4)]
    for step in range(2):
        joined = {key: np.concatenate([p[step][key] for p in parts]) for key in whole[step]}
        assert_same(joined, whole[step])


def test_text_is_shuffled_and_every_epoch_sees_each_row_once() -> None:
    source = packed([chr(97 + i) * 7 for i in range(24)], length=8)
    assert source.num_rows == 24
    config = small_config(data__task="text", data__length=8, train__batch_size=8)
    iterator = pipeline.train_batches(resolve(config), config, source=source)
    epochs = [np.concatenate([next(iterator)["tokens"][:, 1] for _ in range(3)]) for _ in range(2)]
    for epoch in epochs:
        assert sorted(epoch) == sorted(source.rows(np.arange(24))["tokens"][:, 1])
        assert (np.diff(epoch) < 0).any()
    assert not np.array_equal(*epochs)


def test_evaluation_rows_are_the_same_every_time_and_padded_with_empty_ones() -> None:
    source = resolve(small_config()).source("validation")
    sample = pipeline.Sample.of(source, 20)
    batches = pipeline.eval_batches(sample, batch_size=16)
    assert [b["answer"].any(axis=1).sum() for b in batches] == [16, 4]
    assert all(b["tokens"].shape[0] == 16 for b in batches)
    np.testing.assert_array_equal(
        np.concatenate([b["tokens"] for b in batches])[:20], source.rows(np.arange(20))["tokens"]
    )


def test_a_text_is_evaluated_on_a_sample_of_its_rows_and_not_on_its_beginning() -> None:
    # Sorted by component, as a concatenated file is.
    components = ["ArXiv"] * 200 + ["Github"] * 200 + ["Wikipedia"] * 200
    documents = (Document((Turn("", "x" * 30),), component) for component in components)
    source = pack_in_memory(documents, Bytes(), length=32)
    sample = pipeline.Sample.of(source, 60)
    of_rows = sample.rows(np.arange(60))["group"][:, 0]
    assert np.bincount(of_rows, minlength=3).min() > 8
    assert len(set(sample.order.tolist())) == 60
    again = pipeline.Sample.of(source, 60)
    np.testing.assert_array_equal(sample.order, again.order)
    assert sample.identity["of"] == source.num_rows


@given(st.lists(st.integers(0, 60), min_size=1, max_size=12), st.integers(2, 20))
def test_tokens_know_their_document_also_where_it_goes_on_over_rows(
    sizes: list[int], length: int
) -> None:
    source = packed(["x" * size for size in sizes], length)
    sample = pipeline.Sample.of(source, 10_000)
    rows = sample.rows(np.arange(len(sample.order)))
    real = rows["segment_ids"] > 0
    counted = np.bincount(rows["document"][real])
    # Each document's bytes and its end are predicted once.
    assert sorted(counted.tolist()) == sorted(size + 1 for size in sizes)


def test_a_row_knows_its_place_whatever_the_batch_size() -> None:
    config = small_config(data__task="text", data__length=8, train__batch_size=8)
    source = packed([chr(97 + i) * 7 for i in range(24)], length=8)
    whole = pipeline.train_batches(resolve(config), config, source=source)
    in_order = np.concatenate([next(whole)["tokens"] for _ in range(6)])
    first = pipeline.train_batches(resolve(config), config, source=source)
    for _ in range(2):
        next(first)
    state = first.state()
    assert state["rows"] == 16
    smaller = small_config(data__task="text", data__length=8, train__batch_size=4)
    second = pipeline.train_batches(resolve(smaller), smaller, source=source)
    second.go_on_from(state, step=2)
    np.testing.assert_array_equal(next(second)["tokens"], in_order[16:20])
    third = pipeline.train_batches(resolve(smaller), smaller, source=source)
    third.set_state(second.state())
    np.testing.assert_array_equal(next(third)["tokens"], in_order[20:24])
    assert third.state()["rows"] == 24


def test_no_more_rows_are_evaluated_than_there_are() -> None:
    source = packed(["abcdefg"], length=4)
    assert (
        sum(
            len(b["tokens"])
            for b in pipeline.eval_batches(pipeline.Sample.of(source, 100), batch_size=2)
        )
        == 2
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (dict(eval__tasks=("addition",)), "addition has another vocabulary than group_z7_n4"),
        (dict(data__length=3), "config.data.length=3 is less than 5 tokens"),
        (dict(data__task="phop_p2_n8", data__targets="running"), "has no running targets"),
        (dict(data__task="text"), "config.data.length must be set"),
        (
            dict(data__task="text", data__length=8, eval__tasks=("igsm",)),
            "no downstream task 'igsm'",
        ),
    ],
)
def test_data_that_cannot_work_is_named(overrides: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        resolve(small_config(**overrides))
