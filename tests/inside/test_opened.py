"""A trained model in Python: what its methods give is what the pass computes, and costs no more."""

import pathlib
import re
from typing import Any

import jax
import numpy as np
import pytest
from conftest import ROOT
from etils import epath
from helpers import batch_logits, init, random_params, random_rows, small_config, small_model

import looped_jax
from looped_jax.cost.compiled import cost
from looped_jax.errors import UserError
from looped_jax.inside.opened import Opened
from looped_jax.inside.passes import look
from looped_jax.models.attention import attention_weights, causal_attention
from looped_jax.models.transformer import read_out
from looped_jax.training.job import make_job
from looped_jax.training.run import open_run
from looped_jax.training.trainer import train

PLAN = "1x1,2x3,1x1"


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("run") / "run"
    config = small_config(model__plan=PLAN, train__steps=2, eval__examples=8)
    train(make_job(config), epath.Path(folder))
    return folder


@pytest.fixture(scope="module")
def opened(workdir: pathlib.Path) -> Opened:
    """With parameters of which none is as at the start."""
    run = open_run(str(workdir))
    return Opened(run, random_params(run.job.model))


ROWS = [[1, 3, 5, 7, 4], [1, 6], [1, 4, 4]]


def test_logits_are_those_of_each_row_by_itself(opened: Opened) -> None:
    found = opened.logits(ROWS)
    assert found.shape == (3, 5, opened.vocabulary.size)
    for row, logits_TV in zip(ROWS, found, strict=True):
        rows = {"tokens": np.asarray([row]), "segment_ids": None, "positions": None}
        expected = batch_logits(opened.model, opened.params, rows)[0]
        np.testing.assert_allclose(
            logits_TV[: len(row)], expected[:, : found.shape[-1]], rtol=1e-4, atol=1e-5
        )
        np.testing.assert_allclose(opened.logits(row)[0], logits_TV[: len(row)], rtol=1e-5)


def test_what_the_last_state_is_read_out_as_are_the_logits(opened: Opened) -> None:
    states = opened.states(ROWS)
    assert states.shape == (3, 3, 5, 16)
    run, inputs = opened.run, np.zeros((3, 5), np.int32)
    for row, tokens in enumerate(ROWS):
        inputs[row, : len(tokens)] = tokens
    from looped_jax.models.transformer import layer_inputs

    given = layer_inputs(opened.model.config, inputs, (inputs > 0).astype(np.int32))
    read = read_out(opened.model, opened.params, given, 1)(states[-1])
    table = opened.params["embed"]["embedding"]
    found = (read @ table.T)[..., : opened.vocabulary.size]
    np.testing.assert_allclose(found[0], opened.logits(ROWS)[0], rtol=1e-3, atol=1e-4)
    assert run.job.model is opened.model


def test_the_last_layer_of_a_loop_ends_with_its_state(opened: Opened) -> None:
    layers = opened.states(ROWS, layers=True)
    assert layers.shape == (3, 2, 3, 5, 16)
    np.testing.assert_array_equal(layers[:, -1], opened.states(ROWS))
    assert opened.states(ROWS, layers=True, segment=0).shape == (1, 1, 3, 5, 16)


def test_at_fewer_loops_the_states_are_the_first_ones(opened: Opened) -> None:
    states = opened.states(ROWS)
    np.testing.assert_allclose(opened.with_loops(2).states(ROWS), states[:2], rtol=1e-5, atol=1e-6)
    assert opened.with_loops(5).states(ROWS).shape[0] == 5


def test_attention_is_of_earlier_tokens_of_the_row_and_sums_to_one(opened: Opened) -> None:
    weights = opened.attention(ROWS)
    assert weights.shape == (3, 2, 3, 4, 5, 5)
    np.testing.assert_allclose(weights[:, :, 0].sum(-1), 1.0, rtol=1e-5)
    assert not np.any(np.triu(weights[:, :, 0], 1))


def test_weights_of_attention_are_those_that_it_computes_with() -> None:
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(2, 9, heads, 8)).astype(np.float32) for heads in (4, 2, 2))
    documents = np.asarray([[1] * 4 + [2] * 5, [1] * 9])
    weights_BHTS = np.asarray(attention_weights(q, k, documents))
    mixed = np.einsum("bhts,bshk->bthk", weights_BHTS, np.repeat(v, 2, axis=2))
    np.testing.assert_allclose(mixed, causal_attention(q, k, v, documents), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("asked", ["states", "layers"])
def test_looking_costs_no_flops_and_little_beside_the_states(asked: str) -> None:
    wide = dict(vocab_size=64, d_model=64, d_ff=256, max_length=32)
    model = small_model("2x4", unroll="none", **wide)
    params = random_params(model)
    rows = random_rows(rows=4, length=32, vocab=64)

    def compiled(**what: bool) -> Any:
        def run(params: Any) -> Any:
            given = (model, params, rows["tokens"], rows["segment_ids"])
            return look(*given, segment=0, says=True, **what)

        return jax.jit(run).lower(params).compile()

    plain, seen = compiled(), compiled(**{asked: True})
    flops = [cost(program.as_text(), lambda _: 0.0).flops for program in (plain, seen)]
    assert flops[0] == flops[1] > 0
    extra = seen.memory_analysis().temp_size_in_bytes - plain.memory_analysis().temp_size_in_bytes
    states = 4 * 4 * 32 * 64 * 4 * (2 if asked == "layers" else 1)  # Bytes of all that is asked.
    assert extra <= 1.1 * states


def test_parameters_are_made_without_anything_that_is_shown() -> None:
    assert set(init(small_model("1x2"))) == {"embed", "final_norm", "segment_0"}


def test_a_task_is_answered_and_scored_in_its_own_text(opened: Opened) -> None:
    (said,) = opened.generate("3 1 2 5", max_tokens=1)
    assert len(said.split()) <= 1
    (scored,) = opened.score([("3 1 2 5", " 4")])
    assert scored.log_p.shape == (1,) and scored.total < 0


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (lambda m: m.logits([]), "there are no rows: give a text, a list of texts, or ids"),
        (lambda m: m.logits([[]]), "prompt 0 has 0 tokens"),
        (lambda m: m.logits([[1] * 99]), "prompt 0 has 99 tokens; this model reads 1 to"),
        (lambda m: m.logits("3 77"), "'77' is not in this task's vocabulary"),
        (lambda m: m.states([1, 3], segment=3), "segment=3: plan 1x1,2x3,1x1 has segments 0 to 2"),
        (lambda m: m.with_loops(0), "loops=0"),
    ],
)
def test_bad_input_is_one_line(opened: Opened, asked: Any, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)) as raised:
        asked(opened)
    assert "\n" not in str(raised.value)


def test_the_page_runs_as_it_is_written(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "python.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 4
    made: dict[str, Any] = {}
    for block in blocks:  # The page's own text, of a run of two steps.
        exec(block.replace("steps=1000", "steps=2"), made)
    assert "\n(6, 2, 8, 128)\n" in capsys.readouterr().out
    assert looped_jax.load("runs/seven").step == 2


def test_two_commands_can_be_imported_in_one_process() -> None:
    import looped_jax.evaluate
    import looped_jax.generate  # noqa: F401
