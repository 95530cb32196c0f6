"""Loop counts that are data: the same numbers as a plain `for`, gradients through the last loops
alone, one compilation, on every mesh and with every `remat`."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    MESHES,
    TWO_MESHES,
    assert_close,
    init,
    random_rows,
    small_config,
    small_model,
    step_on_mesh,
)
from hypothesis import given
from hypothesis import strategies as st

from looped_jax.cost.compiled import cost
from looped_jax.models.flops import train_flops
from looped_jax.models.layers import LayerInputs, norm, rope_angles
from looped_jax.models.loops.base import LoopContext, row_at, rows_of
from looped_jax.models.loops.segment import LoopedSegment
from looped_jax.models.transformer import batch_forward
from looped_jax.training.train_step import loss_and_grads

ROWS = random_rows(rows=3)
M = 3  # Loops with gradients.
PLAN = "1x1,2x4,1x1"
KINDS: dict[str, Any] = {
    "plain": (),
    "decay, time": (("injection", "decay"), ("per_loop", "time")),
    "noise, lanes, concat, norm after every loop, LoRA": (
        ("injection", "concat"),
        ("lanes", "hyper"),
        ("last_norm", "every_loop"),
        ("per_loop", "lora"),
        ("state", "noise"),
    ),
}


def model_of(kind: str, **fields: Any) -> Any:
    return small_model(PLAN, loop=KINDS[kind], gradient_loops=M, **fields)


def params_of(kind: str) -> Any:
    leaves, tree = jax.tree.flatten(init(model_of(kind)))
    rng = np.random.default_rng(0)
    return tree.unflatten([leaf + 0.1 * rng.normal(size=leaf.shape) for leaf in leaves])


def by_hand(kind: str, params: Any, loops: int) -> Any:
    """A plain `for` over the segment's own loop, whose first ones see neither parameters nor input
    with gradients."""
    config, stopped = model_of(kind).config, jax.lax.stop_gradient(params)
    x = params["embed"]["embedding"][ROWS["tokens"]] * config.d_model**0.5
    inputs = LayerInputs(
        rope_angles(config, ROWS["positions"]), ROWS["segment_ids"], ROWS["positions"]
    )

    def variables(params: Any, index: int, loop: int) -> Any:
        own = params.get("per_loop", {}).get(f"segment_{index}", {})
        rows = jax.tree.map(lambda a: rows_of(a, loops, config.beyond_trained)[loop], own)
        return {"params": params[f"segment_{index}"], "per_loop": rows}

    def begun(segment: LoopedSegment, context: LoopContext) -> Any:
        for _, variant in segment.variants():
            context = variant.prepare(context)
        return context, segment.start(context)

    for index, segment in enumerate(config.plan.segments):
        run = LoopedSegment(config, segment, parent=None)
        if segment.loops == 1:
            x, _ = run.apply(variables(params, index, 0), x, inputs)
            continue
        # Compiled once for all loops, of which each would be traced and compiled by itself.
        step = jax.jit(functools.partial(run.apply, method="one_loop"))
        first = LoopContext(x, inputs, loops)
        context, state = run.apply(variables(params, index, 0), first, method=begun)
        for loop in range(loops):
            cut = jax.lax.stop_gradient if loop < loops - M else lambda tree: tree
            of = variables(stopped if loop < loops - M else params, index, loop)
            arguments = (cut(state), jnp.asarray(loop), cut(context))
            state, _ = step(of, *arguments)
            state = cut(state)
        x = run.apply(variables(params, index, 0), state, context, method="finish")
    return norm(config, "n").apply({"params": params["final_norm"]}, x)


@functools.cache
def compiled(kind: str, how: tuple[tuple[str, Any], ...] = ()) -> Any:
    model = model_of(kind, **dict(how))

    def loss(params: Any, loops_B: Any) -> Any:
        return jnp.sum(jnp.sin(batch_forward(model, params, {**ROWS, "loops": loops_B}).x_BTD))

    return jax.jit(jax.value_and_grad(loss))


@pytest.mark.parametrize("kind", KINDS)
def test_counted_loops_equal_a_plain_for_that_cuts_gradients(kind: str) -> None:
    params, run = params_of(kind), compiled(kind)
    for loops in (1, M, M + 2):
        # A plain `for` takes longer to compile than to run.
        expected = jax.value_and_grad(
            lambda p, loops=loops: jnp.sum(jnp.sin(by_hand(kind, p, loops)))
        )(params)
        assert_close(run(params, np.full(3, loops, np.int32)), expected)
    assert run._cache_size() == 1  # Whatever the count.


def test_rows_of_different_counts_are_what_each_is_by_itself() -> None:
    kind = "decay, time"
    model, params = model_of(kind), params_of(kind)
    loops_B = np.asarray([2, 7, 3], np.int32)
    mixed = batch_forward(model, params, {**ROWS, "loops": loops_B}).x_BTD
    for row, loops in enumerate(loops_B):
        alone = batch_forward(model, params, ROWS, loops=int(loops)).x_BTD
        np.testing.assert_allclose(mixed[row], alone[row], rtol=1e-4, atol=1e-5)
    # And the gradients are the sum of those of each.
    _, whole = compiled(kind)(params, loops_B)

    def of_row(params: Any, row: int) -> Any:
        return jnp.sum(jnp.sin(by_hand(kind, params, int(loops_B[row]))[row]))

    parts = [jax.jit(jax.grad(functools.partial(of_row, row=row)))(params) for row in range(3)]
    assert_close(whole, jax.tree.map(lambda *leaves: sum(leaves), *parts))


@pytest.mark.parametrize(
    "how",
    [
        {"unroll": "none"},
        *({"remat": mode} for mode in ("layer", "loop", "dots")),
        {"remat": "names", "saved_names": ("query", "mlp_up")},
    ],
    ids=str,
)
def test_execution_does_not_change_counted_loops(how: dict[str, Any]) -> None:
    kind = "noise, lanes, concat, norm after every loop, LoRA"
    params, loops_B = params_of(kind), np.full(3, 5, np.int32)
    assert_close(
        compiled(kind, tuple(how.items()))(params, loops_B), compiled(kind)(params, loops_B)
    )


@functools.cache
def one_step(name: str) -> Any:
    widths = dict(data__length=8, model__plan="1x1,1x3", model__vocab_size=16)
    counts = dict(counts__distribution="poisson", counts__gradient_loops=2, counts__by="row")
    loop = dict(loop__injection="decay", loop__state="noise", loop__per_loop="time")
    config = small_config(**widths, **counts, **loop, **MESHES[name])
    rows = random_rows(rows=16, length=8, vocab=10)
    return step_on_mesh(config, rows | {"loops": np.arange(16, dtype=np.int32) % 5 + 1})


@pytest.mark.parametrize("name", TWO_MESHES)
def test_counted_loops_are_the_same_on_every_mesh(name: str) -> None:
    assert_close(one_step(name), one_step("1"), 2e-5)


def test_only_loops_with_gradients_have_a_backward_pass() -> None:
    fields = dict(vocab_size=64, d_model=128, d_ff=512, num_heads=4, num_kv_heads=4)
    model = small_model("1x8", gradient_loops=2, unroll="none", max_length=32, **fields)
    rows = random_rows(rows=4, length=32, vocab=64) | {"loops": np.full(4, 8, np.int32)}
    step = jax.jit(lambda params, batch: loss_and_grads(model, params, batch))
    program = step.lower(init(model), rows).compile().as_text()
    for loops in (8, 20):
        found = cost(program, trips_of_data=loops - 2).flops
        assert found == pytest.approx(train_flops(model.config, 4, 32, (loops, 2)), rel=0.01)
    with pytest.raises(ValueError, match="trip count"):
        cost(program)


@given(st.integers(1, 5), st.integers(0, 9), st.sampled_from(["last", "mean"]))
def test_a_row_by_number_is_the_row_of_the_whole(trained: int, loop: int, beyond: str) -> None:
    array = jnp.arange(2.0 * trained).reshape(trained, 2) ** 2
    whole = rows_of(array, max(trained, loop + 1), beyond)
    np.testing.assert_allclose(row_at(array, jnp.asarray(loop), beyond), whole[loop], rtol=1e-6)
