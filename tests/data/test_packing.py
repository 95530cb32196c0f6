import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from looped_jax.data.documents import Document, Turn
from looped_jax.data.packing import component_id, segments_of, token_dtype
from looped_jax.data.rows import BOS, EOS
from looped_jax.data.text import TextRows, pack_in_memory
from looped_jax.data.vocabulary import Bytes

VOCABULARY = Bytes()
documents = st.lists(
    st.builds(
        lambda text, component: Document((Turn("", text),), component),
        st.text(alphabet=st.characters(exclude_categories=("Cs",)), max_size=30),
        st.sampled_from(["ArXiv", "Github", "PG-19 ⊗"]),
    ),
    min_size=1,
    max_size=8,
)


def packed(documents: list[Document], length: int) -> TextRows:
    return pack_in_memory(documents, VOCABULARY, length)


@given(documents, st.integers(2, 20))
def test_packing_predicts_every_token_exactly_once_and_in_order(
    documents: list[Document], length: int
) -> None:
    source = packed(documents, length)
    rows = source.rows(np.arange(source.num_rows))
    real = rows["loss_weights"] > 0
    expected = [[BOS, *VOCABULARY.encode(d.text), EOS] for d in documents]
    assert rows["targets"][real].tolist() == [t for d in expected for t in d[1:]]
    assert rows["tokens"][real].tolist() == [t for d in expected for t in d[:-1]]
    # Padding only at the end of the last row, and it is segment 0.
    assert real.reshape(-1).tolist() == sorted(real.reshape(-1).tolist(), reverse=True)
    np.testing.assert_array_equal(rows["segment_ids"] > 0, real)


@given(documents, st.integers(2, 20))
def test_segments_are_documents_and_positions_count_within_them(
    documents: list[Document], length: int
) -> None:
    source = packed(documents, length)
    rows = source.rows(np.arange(source.num_rows))
    for tokens, segments, positions in zip(
        rows["tokens"], rows["segment_ids"], rows["positions"], strict=True
    ):
        starts = np.flatnonzero((tokens == BOS) & (segments > 0))
        for at in range(length):
            if segments[at] == 0:
                continue
            first = max([0, *[s for s in starts if s <= at]])
            assert positions[at] == at - first
            assert segments[at] == segments[0] + sum(0 < s <= at for s in starts)


@given(documents, st.integers(2, 20))
def test_every_token_counts_to_its_component_and_every_byte_to_its_token(
    documents: list[Document], length: int
) -> None:
    source = packed(documents, length)
    rows = source.rows(np.arange(source.num_rows))
    real = rows["loss_weights"] > 0
    for i, name in enumerate(source.components):
        own = [d.text.encode() for d in documents if d.component == name]
        here = real & (rows["group"] == i)
        assert here.sum() == sum(len(text) + 1 for text in own)
        assert rows["target_bytes"][here].sum() == sum(map(len, own))
    stored = [segment for record in source.records for segment in segments_of(record)]
    assert sum(sum(segment.runs) for segment in stored) == real.sum()
    assert {segment.component for segment in stored} == {
        component_id(d.component) for d in documents
    }


letters = st.text(alphabet="abc", max_size=12)


turns = st.lists(st.builds(Turn, letters, letters), min_size=1, max_size=4)


@given(
    st.lists(st.builds(Document, turns.map(tuple), st.just("x")), min_size=1), st.integers(2, 40)
)
def test_prompts_are_read_but_not_trained_on(documents: list[Document], length: int) -> None:
    source = packed(documents, length)
    rows = source.rows(np.arange(source.num_rows))
    trained = rows["loss_weights"] > 0
    answers = ["".join(turn.text for turn in d.turns) for d in documents]
    expected = [[*VOCABULARY.encode(answer), EOS] for answer in answers]
    assert rows["targets"][trained].tolist() == [t for d in expected for t in d]
    assert rows["target_bytes"].sum() == sum(map(len, answers))
    read = [[BOS, *VOCABULARY.encode(d.text)] for d in documents]
    real = rows["segment_ids"] > 0
    assert rows["tokens"][real].tolist() == [t for d in read for t in d]
    # What has prompts and fits is in one row, so that all of them are there.
    whole = {
        tuple(tokens[segments == s].tolist())
        for tokens, segments in zip(rows["tokens"], rows["segment_ids"], strict=True)
        for s in range(1, segments.max() + 1)
    }
    for tokens, document in zip(read, documents, strict=True):
        if any(turn.prompt for turn in document.turns) and len(tokens) <= length:
            assert tuple(tokens) in whole


def test_damaged_rows_are_refused() -> None:
    long = Document((Turn("", "a text of some length"),), "x")
    source = packed([long, Document((Turn("a", "b"), Turn("c", "d")), "y")], 16)
    row = source.records[0]
    cut = [row[:end] for end in range(len(row))]
    for damaged in (*cut, row + b"\0", b"\xff" * len(row)):
        with pytest.raises(ValueError):
            source.reader.rows([damaged])
    with pytest.raises(ValueError, match="is damaged"):
        dataclasses.replace(source.reader, length=8).rows([row])


def test_tokens_are_stored_in_two_bytes_where_they_fit() -> None:
    assert token_dtype(65_536).itemsize == 2
    assert token_dtype(65_537).itemsize == 4
