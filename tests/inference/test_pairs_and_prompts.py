"""Pairs to score and prompts to continue, as ids that a model reads."""

import pathlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers_of_text import llama_like, write_own

from looped_jax.data.rows import BOS
from looped_jax.data.vocabulary import Bytes, load_vocabulary
from looped_jax.errors import UserError
from looped_jax.inference.text import fit_pair, fit_prompt, pair_ids, prompt_ids
from looped_jax.interop.tokenizer_json import before

SHIPPED = load_vocabulary("pile_mini_32k")


def test_blanks_at_the_end_of_a_context_belong_to_the_continuation() -> None:
    assert pair_ids(Bytes(), "a ", "b") == pair_ids(Bytes(), "a", " b")
    assert pair_ids(Bytes(), "", "b") == ([BOS], prompt_ids(Bytes(), "b")[1:])


@pytest.mark.parametrize("begins", [True, False], ids=["BOS first", "nothing first"])
def test_prompts_begin_as_the_tokenizer_itself_begins_them(
    begins: bool, tmp_path: pathlib.Path
) -> None:
    rule = {"post_processor": before(["</s>"], [2])} if begins else {}
    folder = write_own(tmp_path, llama_like() | rule, bos_token="</s>", eos_token="<s>")
    own = load_vocabulary(f"own:{folder}")
    ids = own.encode("loop").tolist()
    assert prompt_ids(own, "loop") == ([2, *ids] if begins else ids)
    assert prompt_ids(own, "") == [2]
    # Something is read before what is scored.
    assert pair_ids(own, "", "loop") == ([2], ids)
    assert pair_ids(own, "loop", " loop")[0] == ([2, *ids] if begins else ids)


def test_a_prompt_that_is_cut_keeps_what_stands_before_it() -> None:
    assert fit_prompt([9, 1, 2, 3, 4], 3, 5) == [9, 3, 4]
    assert fit_prompt([9, 1, 2, 3, 4], 3, 5, kept=0) == [2, 3, 4]


@pytest.mark.parametrize(
    ("context", "continuation"),
    [
        *(("The answer is under", "stand"), ("un", "der"), ("Question? Answer: y", "es")),
        *(('He said "no', "thing"), ("def f(", "):")),
    ],
)
def test_a_choice_that_merges_with_its_context_is_not_scored_as_nothing(
    context: str, continuation: str
) -> None:
    # Without that the continuation has no ids, log-likelihood 0.0, and is the best of all.
    before, said = pair_ids(SHIPPED, context, continuation)
    assert before == prompt_ids(SHIPPED, context)
    assert SHIPPED.decode(said) == continuation


@given(st.text(max_size=30), st.text(min_size=1, max_size=30))
@pytest.mark.parametrize("vocabulary", [Bytes(), SHIPPED], ids=["bytes", "shipped"])
def test_every_continuation_is_scored_whole(
    vocabulary: object, context: str, continuation: str
) -> None:
    before, said = pair_ids(vocabulary, context, continuation)
    assert before[0] == BOS and said
    kept = len(context) - len(context.rstrip(" "))
    assert vocabulary.decode(before) == context[: len(context) - kept]  # type: ignore[attr-defined]
    expected = context[len(context) - kept :] + continuation
    assert vocabulary.decode(said) == expected  # type: ignore[attr-defined]


def test_an_empty_continuation_is_refused() -> None:
    with pytest.raises(UserError, match="empty continuation"):
        pair_ids(Bytes(), "a", "")


IDS = st.lists(st.integers(3, 99), max_size=40)


@given(IDS, IDS.filter(bool), st.integers(1, 50))
def test_a_pair_keeps_its_end_and_a_token_of_context(
    context: list[int], continuation: list[int], length: int
) -> None:
    whole = [BOS, *context, *continuation]
    before, said = fit_pair([BOS, *context], continuation, length)
    assert before and said and len(before) + len(said) <= length + 1
    assert [*before, *said] == whole[-(length + 1) :]
    assert said == continuation[-length:]


@given(IDS, st.integers(1, 300), st.integers(1, 50))
def test_a_prompt_keeps_bos_and_its_end_and_leaves_room(
    prompt: list[int], count: int, length: int
) -> None:
    whole = [BOS, *prompt]
    fitted = fit_prompt(whole, count, length)
    assert fitted[0] == BOS and 1 <= len(fitted) <= max(1, length)
    assert fitted == whole or fitted[1:] == whole[len(whole) - len(fitted) + 1 :]
    if count <= length // 2:
        assert len(fitted) + count <= length + 1
    elif fitted != whole:  # So many new tokens would leave the prompt nothing.
        assert len(fitted) == max(1, length // 2, length + 1 - count)
