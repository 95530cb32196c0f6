"""What is watched of loops while held-out rows are evaluated: equal to its definition over whole
states, 1 or 0 where it has to be, at no cost."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import MESHES, init, random_params, random_rows, small_config, small_model

from looped_jax.cost.compiled import cost
from looped_jax.data.documents import Document, Turn
from looped_jax.data.text import pack_in_memory
from looped_jax.data.vocabulary import Bytes
from looped_jax.evaluation.held_out import Evaluator, HeldOut, row_sums
from looped_jax.inference.policy import EXACT
from looped_jax.models.loops.segment import Wanted
from looped_jax.models.transformer import batch_forward
from looped_jax.parallel.mesh import make_mesh
from looped_jax.training.evaluations import Evaluations
from looped_jax.training.job import make_job
from looped_jax.training.state import init_state

LOOPS = 3
GATE = ("gate", "linear")


def held_out() -> HeldOut:
    """Eleven rows in batches of eight, some not full, some of two documents."""
    texts = ("The quick brown fox jumps over the lazy dog.", "Ja.", "öfter", "x" * 70)
    documents = (Document((Turn("", text),), "en") for text in texts)
    return HeldOut.from_source("text", pack_in_memory(documents, Bytes(), length=12), 100, 8)


def by_definition(model: Any, params: Any) -> dict[str, float]:
    """In float64, token by token and pair by pair."""
    found: dict[str, list[float]] = {}
    for batch in held_out().batches:
        wanted = Wanted(states=True, emitted=True)
        (segment,) = batch_forward(model, params, batch, wanted=wanted).segments
        begins = params["embed"]["embedding"][batch["tokens"]] * model.config.d_model**0.5
        states = np.asarray([begins, *segment.x_BTD], np.float64)
        gates = 1 / (1 + np.exp(-np.asarray(segment.emitted["gate"], np.float64)))
        for row, at in zip(*np.nonzero(batch["segment_ids"]), strict=True):
            stop = gates[:, row, at]
            p = np.asarray([stop[0], (1 - stop[0]) * stop[1], (1 - stop[0]) * (1 - stop[1])])
            found.setdefault("exit/entropy", []).append(-np.sum(p * np.log(p)))
            found.setdefault("exit/loops", []).append(p @ [1, 2, 3])
            for t in range(1, LOOPS + 1):
                before, now = states[t - 1 : t + 1, row, at]
                size = np.linalg.norm(now)
                numbers = {
                    "state_norm": size,
                    "relative_update": np.linalg.norm(now - before) / size,
                    "cosine_to_before": now @ before / size / np.linalg.norm(before),
                    "exit": p[t - 1],
                }
                for name, value in numbers.items():
                    found.setdefault(f"loop_{t}/{name}", []).append(value)
                others = [i for i in np.flatnonzero(batch["segment_ids"][row]) if i != at]
                found.setdefault(f"loop_{t}/cosine_between_tokens", []).extend(
                    now @ states[t, row, i] / size / np.linalg.norm(states[t, row, i])
                    for i in others
                )
    return {f"eval/text/{name}": float(np.mean(values)) for name, values in found.items()}


@functools.cache
def model_of(**fields: Any) -> Any:
    return small_model(f"2x{LOOPS}", vocab_size=264, loop=(GATE,), **fields)


def watched(model: Any, params: Any, **mesh: Any) -> dict[str, float]:
    config = small_config(**(mesh or MESHES["1"]))
    evaluator = Evaluator(model, make_mesh(config), config.mesh.rules, watch=True)
    found = evaluator(params, held_out())
    assert found is not None
    return {name: v for name, v in found.items() if "/loop_" in name or "/exit/" in name}


@pytest.mark.parametrize("mesh", ["1", "8 data", "8 fsdp, gathered"])
def test_numbers_of_loops_are_those_of_their_definitions(mesh: str) -> None:
    params = random_params(model_of(), 0.1)
    overrides = dict(MESHES[mesh])
    model = model_of(gather=overrides.pop("model__gather", "layer"))
    found, expected = watched(model, params, **overrides), by_definition(model_of(), params)
    assert found.keys() == expected.keys() and len(found) == 5 * LOOPS + 2
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_tokens_that_have_become_one_have_a_cosine_of_one() -> None:
    params = random_params(model_of(), 0.1)
    table_VD = params["embed"]["embedding"]
    params["embed"]["embedding"] = jnp.broadcast_to(table_VD[:1], table_VD.shape)
    found = watched(model_of(), params)
    for t in range(1, LOOPS + 1):
        assert found[f"eval/text/loop_{t}/cosine_between_tokens"] == pytest.approx(1.0, abs=1e-5)
        assert found[f"eval/text/loop_{t}/relative_update"] > 0.01


def test_a_loop_that_does_nothing_has_no_update_and_zeros_have_no_cosine() -> None:
    # Where its training begins, a loop that is told the time is the identity.
    model = small_model("1x2", vocab_size=264, loop=(("per_loop", "time"),))
    found = watched(model, init(model))
    assert [found[f"eval/text/loop_{t}/relative_update"] for t in (1, 2)] == [0.0, 0.0]
    assert found["eval/text/loop_2/cosine_to_before"] == pytest.approx(1.0, abs=1e-6)
    zero = ("state", "zero")
    model = small_model("1x2", vocab_size=264, loop=(("per_loop", "time"), zero))
    found = watched(model, init(model))
    assert {value for name, value in found.items() if "/loop_" in name} == {0.0}


def test_a_run_says_it_of_the_plans_loops_and_of_each_looped_segment() -> None:
    overrides = dict(model__plan="1x2,1x3", loop__injection="decay", eval__loops=(1,))
    job = make_job(small_config(mesh__data=1, **overrides))
    params = init_state(job.model, job.optimizer, 0, job.layout).params
    found = Evaluations(job).measure(params, lambda: False)
    assert found is not None
    norms = {name for name in found if name.endswith("state_norm")}
    where = "eval/group_z7_n4/segment_"
    assert norms == {
        *(f"{where}0/loop_{t}/state_norm" for t in (1, 2)),
        *(f"{where}1/loop_{t}/state_norm" for t in (1, 2, 3)),
    }
    assert "eval/group_z7_n4/loops_1/loss" in found
    for kind in ("min", "mean", "max"):
        assert found[f"loop/segment_1/decay_{kind}"] == pytest.approx(0.2**0.5, rel=1e-6)


def test_watching_costs_next_to_nothing() -> None:
    wide = dict(vocab_size=64, d_model=128, d_ff=512, num_heads=4, num_kv_heads=4, max_length=64)
    rows = random_rows(rows=4, length=64, vocab=64)
    stream = 4 * 64 * 128 * 4  # Bytes of x_BTD.
    found = {}
    for loops in (4, 16):
        model = small_model(f"1x{loops}", unroll="none", loop=(GATE,), **wide)
        params = init(model)
        for watch in (False, True):
            step = jax.jit(
                lambda p, b, model=model, watch=watch: row_sums(model, p, b, None, 1, EXACT, watch)
            )
            made = step.lower(params, rows).compile()
            memory = made.memory_analysis().temp_size_in_bytes
            found[loops, watch] = cost(made.as_text()).flops, memory
    assert found[16, True][0] < 1.01 * found[16, False][0]
    growth = [found[16, watch][1] - found[4, watch][1] for watch in (False, True)]
    assert growth[1] - growth[0] < stream  # No stream of any loop is kept.
