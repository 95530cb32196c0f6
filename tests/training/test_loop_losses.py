"""Losses of what every loop says (training/loop_losses.py): each equals its formula, written with
whole passes of 1, 2, … loops; memory and FLOPs are those promised."""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    MESHES,
    assert_close,
    batch_logits,
    init,
    random_params,
    random_rows,
    small_config,
    small_model,
    step_on_mesh,
)
from hypothesis import given
from hypothesis import strategies as st

from looped_jax.cost.compiled import cost
from looped_jax.data.pipeline import train_batches
from looped_jax.errors import UserError
from looped_jax.models.flops import train_flops
from looped_jax.models.loops.gate import exit_log_p
from looped_jax.models.loops.segment import Wanted
from looped_jax.models.transformer import batch_forward
from looped_jax.parallel.mesh import put_batch
from looped_jax.training.job import abstract_batch, jitted_train_step, make_job
from looped_jax.training.loop_losses import LoopLosses
from looped_jax.training.state import init_state
from looped_jax.training.train_step import loss_and_grads

PLAN, LOOPS = "1x1,2x3,1x1", 3
ROWS = random_rows(rows=3)
WEIGHTED = {"weighted": dict(loop_loss__weights=(0.5, 0.0, 2.0)), "all the same": {}}
GATED = {"expected", "gate", "ponder"}
KINDS = (*WEIGHTED, *sorted(GATED), "act")


def options(name: str) -> dict[str, Any]:
    """Overrides of a config for a kind of loss, and a gate where it needs one."""
    kind = "weighted" if name in WEIGHTED else name
    gate = "linear" if kind in GATED else "act" if kind == "act" else "none"
    given = dict(loop_loss__kind=kind, loop__gate=gate, loop_loss__beta=0.3)
    return {**given, **WEIGHTED.get(name, {})}


def losses(name: str, plan: str = PLAN, **overrides: Any) -> LoopLosses:
    made = LoopLosses.from_config(small_config(model__plan=plan, **options(name), **overrides))
    assert made is not None
    return made


def by_hand(model: Any, params: Any, name: str) -> tuple[jax.Array, jax.Array]:
    """What is minimised and the last loop's cross-entropy, with the logits of separate passes."""

    def xent_BT(loops: int) -> jax.Array:
        log_p_BTV = jax.nn.log_softmax(batch_logits(model, params, ROWS, loops))
        return -jnp.take_along_axis(log_p_BTV, ROWS["targets"][..., None], -1)[..., 0]

    weights_BT = ROWS["loss_weights"] / ROWS["loss_weights"].sum()
    ce = [xent_BT(t) for t in range(1, LOOPS + 1)]
    weighted = lambda values_BT: jnp.sum(weights_BT * values_BT)  # noqa: E731
    return weighted(_objective(model, params, ce, name)), weighted(ce[-1])


def _objective(model: Any, params: Any, ce: list[jax.Array], name: str) -> Any:
    output = batch_forward(model, params, ROWS, wanted=Wanted(emitted=True))
    emitted = output.segments[1].emitted.get("gate")
    if name == "act":
        return ce[-1] + 0.3 * emitted[-1]
    if name in WEIGHTED:
        each = {"weighted": (0.5, 0.0, 2.0), "all the same": (1 / 3,) * 3}[name]
        return sum(w * c for w, c in zip(each, ce, strict=True))
    stop = [jax.nn.sigmoid(logits_BT) for logits_BT in emitted]
    if name == "gate":
        found = 0.0
        for t in range(1, LOOPS):
            gain = jnp.maximum(0.0, jax.lax.stop_gradient(ce[t - 1] - ce[t]))
            goes_on = jax.nn.sigmoid(50 * (gain - 0.005))
            found -= goes_on * jnp.log(1 - stop[t]) + (1 - goes_on) * jnp.log(stop[t])
        return found / LOOPS
    p = [stop[0], (1 - stop[0]) * stop[1], (1 - stop[0]) * (1 - stop[1])]
    expected = sum(p_t * c for p_t, c in zip(p, ce, strict=True))
    if name == "expected":
        entropy = -sum(p_t * jnp.log(p_t) for p_t in p)
        return expected - 0.3 * entropy
    prior = 0.2 * 0.8 ** np.arange(3)
    prior /= prior.sum()
    divergence = sum(p_t * jnp.log(p_t / g_t) for p_t, g_t in zip(p, prior, strict=True))
    return expected + 0.3 * divergence


def gated(name: str, **fields: Any) -> Any:
    gate = options(name)["loop__gate"]
    return small_model(PLAN, loop=() if gate == "none" else (("gate", gate),), **fields)


@pytest.mark.parametrize("name", KINDS)
def test_a_loss_is_its_formula_over_passes_of_one_to_all_loops(name: str) -> None:
    model, objective = gated(name, remat="loop" if name == "expected" else "none"), losses(name)
    params = random_params(model, 0.1)
    metrics, grads = jax.jit(lambda p: loss_and_grads(model, p, ROWS, losses=objective))(params)
    by_passes = jax.value_and_grad(lambda p: by_hand(model, p, name), has_aux=True)
    (value, last), expected = jax.jit(by_passes)(params)
    assert float(metrics["objective"]) == pytest.approx(float(value), rel=1e-5)

    def close(here: Any, there: Any) -> None:
        np.testing.assert_allclose(here, there, rtol=2e-4, atol=2e-5)

    jax.tree.map(close, grads, expected)
    # What is reported as the loss is comparable between kinds: the cross-entropy after all loops.
    assert float(metrics["loss"]) == pytest.approx(float(last), rel=1e-5)


def test_parts_of_a_batch_have_the_losses_of_the_whole() -> None:
    model, objective = gated("expected"), losses("expected")
    params = random_params(model, 0.1)
    rows = jax.tree.map(lambda x: np.concatenate([x, x[::-1]]), ROWS)

    @functools.partial(jax.jit, static_argnums=1)
    def found(params: Any, parts: int) -> Any:
        return loss_and_grads(model, params, rows, parts=parts, losses=objective)

    one, parts = found(params, 1), found(params, 2)
    assert set(one[0]) == set(parts[0]) >= {"loop_1/loss", "exit/loops", "exit/entropy"}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), one, parts)


@given(st.lists(st.floats(-200, 200, width=32), min_size=2, max_size=9))
def test_the_probabilities_of_all_exits_sum_to_one(logits: list[float]) -> None:
    log_p_L = exit_log_p(jnp.asarray(logits))
    assert float(jnp.sum(jnp.exp(log_p_L))) == pytest.approx(1.0, abs=1e-5)
    assert np.isfinite(log_p_L).all()
    slope_L = jax.grad(lambda z: jnp.sum(jnp.exp(exit_log_p(z)) * jnp.arange(len(logits))))(
        jnp.asarray(logits)
    )
    assert np.isfinite(slope_L).all()


def test_a_gate_that_stops_one_in_those_left_stops_anywhere_alike() -> None:
    stop_L = 1 / (5.0 - np.arange(5.0))  # The last one's is 1: it decides nothing.
    log_p_L = exit_log_p(jnp.asarray([*(np.log(stop_L[:-1] / (1 - stop_L[:-1]))), 7.0]))
    np.testing.assert_allclose(log_p_L, -np.log(5), rtol=1e-6)


@functools.cache
def one_step(name: str) -> Any:
    widths = dict(data__length=8, model__plan="1x1,1x3", model__vocab_size=16)
    config = small_config(**widths, **options("expected"), **MESHES[name])
    return step_on_mesh(config, random_rows(rows=16, length=8, vocab=10))


@pytest.mark.parametrize("name", [n for n in list(MESHES)[2:] if "gathered" not in n])
def test_losses_of_every_loop_are_the_same_on_every_mesh(name: str) -> None:
    assert_close(one_step(name), one_step("1"), 2e-5, share=0.25)


WIDE = dict(vocab_size=512, d_model=256, d_ff=1024, num_heads=4, num_kv_heads=4, max_length=64)


def compiled(plan: str, name: str | None, remat: str = "none") -> Any:
    loop = (("gate", "linear"),) if name in GATED else ()
    model = small_model(plan, unroll="none", remat=remat, loop=loop, **WIDE)
    rows = random_rows(rows=4, length=64, vocab=512)
    objective = None if name is None else losses(name, plan)
    step = jax.jit(lambda p, b: loss_and_grads(model, p, b, losses=objective))
    return step.lower(init(model), rows).compile(), model.config


def test_counted_flops_are_those_of_a_read_out_per_loop_and_its_logits_once_more() -> None:
    program, config = compiled("1x1,1x4,1x1", "expected")
    again = 4 * 2 * 4 * 64 * 256 * 512  # The backward pass computes each loop's logits anew.
    found = cost(program.as_text()).flops - again
    assert found == pytest.approx(train_flops(config, 4, 64, read_outs=4), rel=0.01)


def test_memory_of_losses_of_every_loop_does_not_grow_with_loops_times_width() -> None:
    needed = {
        (loops, name): compiled(f"1x{loops}", name, "loop")[0].memory_analysis().temp_size_in_bytes
        for loops, name in itertools.product((4, 16), (None, "all the same"))
    }
    stream = 4 * 64 * 256 * 4  # Bytes of x_BTD.
    growth = {name: needed[16, name] - needed[4, name] for name in (None, "all the same")}
    assert growth["all the same"] - growth[None] < 2 * stream < growth[None]


STAGE_TWO = dict(
    model__plan="1x1,1x3",
    mesh__data=1,
    train__start_from="run/checkpoints/1",
)


def test_stage_two_trains_the_gate_alone_with_forward_passes_alone() -> None:
    job = make_job(small_config(**STAGE_TWO, **options("gate")))
    state = init_state(job.model, job.optimizer, 0, job.layout)
    batches = train_batches(job.data, job.config)
    with job.context():
        step = jitted_train_step(job)
        program = step.lower(job.layout.abstract, abstract_batch(job)).compile()
        before = jax.device_get(state.params)
        for _ in range(3):
            state, _ = step(state, put_batch(next(batches), job.mesh, 16))
    gate, left = state.params["segment_1"]["gate"], before["segment_1"]["gate"]
    assert float(jnp.abs(gate["weight"] - left["weight"]).max()) > 0
    state.params["segment_1"].pop("gate")
    before["segment_1"].pop("gate")
    jax.tree.map(np.testing.assert_array_equal, state.params, before)
    found = cost(program.as_text()).flops
    assert found == pytest.approx(job.mean_step_flops, rel=0.02)
    whole = make_job(small_config(**STAGE_TWO, **options("expected")))
    assert found < 0.45 * whole.mean_step_flops


def test_stage_two_freezes_more_if_it_is_told_to_and_never_all() -> None:
    frozen = dict(optimizer__frozen=("embed", "segment_1/gate/bias"))
    job = make_job(small_config(**STAGE_TWO, **options("gate"), **frozen))
    trained = [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, held in jax.tree_util.tree_leaves_with_path(job.frozen)
        if not held
    ]
    assert trained == ["segment_1/gate/weight"]
    with pytest.raises(UserError, match="is every parameter: nothing is trained"):
        nothing = dict(optimizer__frozen=("segment_1/gate",))
        make_job(small_config(**STAGE_TWO, **options("gate"), **nothing))


def test_a_gate_alone_is_not_trained_on_a_model_that_nobody_has_trained() -> None:
    with pytest.raises(
        UserError, match=r"config\.train\.start_from=RUN/checkpoints/STEP says which"
    ):
        make_job(small_config(**{**STAGE_TWO, **options("gate"), "train__start_from": ""}))


def test_the_baseline_of_a_comparison_has_no_loops_to_count_or_to_learn_from() -> None:
    counts = dict(counts__distribution="poisson", counts__gradient_loops=2)
    for overrides in (options("expected"), counts):
        job = make_job(small_config(model__plan="2x1", **overrides))
        assert job.losses is None and job.counts is None


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (dict(loop_loss__kind="expected"), "needs config.loop.gate='linear'; it is 'none'"),
        (dict(loop_loss__kind="act", loop__gate="linear"), "needs config.loop.gate='act'"),
        (dict(loop_loss__kind="weighted", loop_loss__weights=(1.0,)), "1 numbers for 3 loops"),
        (dict(loop_loss__weights=(1.0,) * 3), "are for kind='weighted'"),
        (dict(loop_loss__kind="weighted", model__plan="1x2,1x2"), "one looped segment"),
        (dict(loop_loss__kind="weighted", train__z_loss=0.1), "z_loss"),
        (dict(loop_loss__kind="weighted", model__gather="segment"), "gather='layer'"),
        (dict(loop_loss__kind="weighted", counts__gradient_loops=2), "config.counts"),
    ],
)
def test_what_cannot_be_trained_for_is_refused(overrides: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        make_job(small_config(**{"model__plan": PLAN, **overrides}))
