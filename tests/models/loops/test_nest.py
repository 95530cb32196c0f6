"""Loops at two speeds: cut gradients, what they cost, what they refuse."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    batch_logits,
    init,
    layer_by_hand,
    random_params,
    random_rows,
    small_config,
    small_model,
)

from looped_jax.config import validate
from looped_jax.cost.compiled import cost
from looped_jax.errors import UserError
from looped_jax.inference.policy import CachePolicy
from looped_jax.models.flops import train_flops
from looped_jax.models.layers import LayerInputs, norm, rope_angles
from looped_jax.models.loops.exits import ExitRule
from looped_jax.models.loops.segment import Wanted
from looped_jax.models.transformer import batch_forward, check_loops
from looped_jax.training.job import make_job
from looped_jax.training.regularizer import layer_groups
from looped_jax.training.train_step import loss_and_grads

ROWS = random_rows(rows=2)
STACKS = {"two_stacks": ("layers", "more_layers_0"), "one_stack": ("layers", "layers")}


def model_of(nest: str, plan: str = "1x6", **fields: Any) -> Any:
    return small_model(plan, loop=(("nest", nest),), **{"low_loops": 2, **fields})


def by_hand(model: Any, params: Any, kept: list[int], cycles: int) -> jax.Array:
    """Cycles as in the papers, with jax.lax.stop_gradient on all that a low update is made of,
    unless it is among the last ``kept`` ones of its cycle."""
    config, stop = model.config, jax.lax.stop_gradient
    inputs = LayerInputs(rope_angles(config, ROWS["positions"]), ROWS["segment_ids"])
    low_name, high_name = STACKS[dict(config.loop)["nest"]]

    def update(own: Any, stack: str, x: Any) -> Any:
        weights = jax.tree.map(lambda leaf: leaf[0], own[stack]["layer"])
        x = layer_by_hand(config, weights, x, inputs)
        name = "norms_1" if stack == "more_layers_0" else "norms_0"
        return norm(config, "n").apply({"params": own["nest"][name]}, x)

    own = params["segment_0"]
    table = params["embed"]["embedding"]
    z_high = table[ROWS["tokens"]] * config.d_model**0.5
    z_low = 0 * z_high + stop(own["nest"]["low"])
    for cycle in range(cycles):
        for i in range(config.low_loops):
            held = stop if i < config.low_loops - kept[cycle] else lambda tree: tree
            z_low = update(held(own), low_name, held(z_low) + held(z_high))
        z_high = update(own, high_name, z_high + z_low)
    return z_high @ table.T


@pytest.mark.parametrize(
    ("nest", "asked", "kept"),
    [
        ("two_stacks", (0, 1), [0, 1]),
        ("two_stacks", (2,), [1, 2]),
        ("one_stack", (1, 0), [1, 0]),
    ],
)
def test_gradients_are_cut_where_a_plain_loop_cuts_them(
    nest: str, asked: tuple[int, ...], kept: list[int]
) -> None:
    model = model_of(nest, low_gradient_loops=asked)
    params = random_params(model, 0.2)

    def value_and_grad(run: Any) -> Any:
        return jax.value_and_grad(lambda p: jnp.sum(jnp.sin(run(p))))

    found = jax.jit(value_and_grad(lambda p: batch_logits(model, p, ROWS)))(params)
    expected = value_and_grad(lambda p: by_hand(model, p, kept, 2))(params)
    whole = jax.jit(value_and_grad(lambda p: batch_logits(model_of(nest), p, ROWS)))(params)
    close = functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-4)
    jax.tree.map(close, found, expected)
    np.testing.assert_allclose(found[0], whole[0], rtol=1e-6)
    kernel = lambda of: of[1]["segment_0"]["layers"]["layer"]["mlp"]["up"]["kernel"]  # noqa: E731
    assert not np.allclose(kernel(found), kernel(whole), rtol=1e-2)
    assert not np.any(found[1]["segment_0"]["nest"]["low"])


def test_what_carries_no_gradient_has_no_backward_pass() -> None:
    sizes = dict(vocab_size=512, d_model=512, d_ff=2048, num_heads=8, num_kv_heads=8, max_length=64)
    rows = random_rows(rows=4, length=64, vocab=512)

    def compiled(*kept: int) -> tuple[float, float]:
        model = model_of("two_stacks", low_gradient_loops=kept, unroll="none", **sizes)
        step = jax.jit(lambda params, batch: loss_and_grads(model, params, batch))
        text = step.lower(init(model), rows).compile().as_text()
        return cost(text).flops, train_flops(model.config, 4, 64)

    (cut, cut_counted), (whole, whole_counted) = compiled(0, 1), compiled()
    assert cut == pytest.approx(cut_counted, rel=0.01)
    assert whole - cut == pytest.approx(whole_counted - cut_counted, rel=0.01)
    assert cut < 0.75 * whole


def test_the_vector_that_the_low_state_begins_with_is_drawn() -> None:
    # That it has no gradient is said above.
    first, other = (
        init(model_of("one_stack", "1x3"), seed)["segment_0"]["nest"] for seed in (0, 1)
    )
    assert 0.5 < float(np.std(first["low"])) < 1.5
    assert not np.allclose(first["low"], other["low"])


def test_a_segment_has_the_layers_of_both_stacks_and_no_norm_after_them() -> None:
    two, one = init(model_of("two_stacks")), init(model_of("one_stack"))
    assert set(two) == {"embed", "segment_0"}
    assert set(two["segment_0"]) == {"layers", "more_layers_0", "nest"}
    assert set(one["segment_0"]) == {"layers", "nest"}
    shapes = [jax.tree.map(jnp.shape, two["segment_0"][of]) for of in STACKS["two_stacks"]]
    assert shapes[0] == shapes[1]
    kernels = [two["segment_0"][of]["layer"]["mlp"]["up"]["kernel"] for of in STACKS["two_stacks"]]
    assert not np.allclose(*kernels)
    np.testing.assert_array_equal(layer_groups(two)["mlp/up/kernel"], np.concatenate(kernels))


def test_other_loop_counts_than_whole_cycles_are_refused() -> None:
    check_loops(model_of("two_stacks"), 9)
    message = "loops=4: with config.loop.low_loops=2 a cycle of config.loop.nest has 3 loops"
    with pytest.raises(UserError, match=message):
        check_loops(model_of("two_stacks"), 4)
    with pytest.raises(UserError, match=r"loops=5: with config\.loop\.low_loops=3"):
        make_job(small_config(model__plan="1x5", loop__nest="one_stack"))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"loop__gate": "act"}, "two states, .*: it needs config.loop.gate='none', not 'act'"),
        ({"loop__lanes": "hyper"}, "needs config.loop.lanes='one', not 'hyper'"),
        ({"loop__last_norm": "every_loop"}, "needs config.loop.last_norm='once', not"),
        ({"loop__per_loop": "lora"}, "no stack of layers that is in all loops"),
        ({"loop_loss__kind": "weighted"}, "needs config.loop_loss.kind='last', not 'weighted'"),
        ({"loop__low_gradient_loops": (4,)}, "4 is more than the 3 low loops"),
        ({"loop__low_gradient_loops": (-1,)}, "-1 is not a number of loops, 0 or more"),
        ({"model__norm": "none"}, "config.loop.nest='two_stacks' is about norms"),
        ({"loop__nest": "none", "loop__low_gradient_loops": (1,)}, "is for config.loop.nest"),
    ],
    ids=str,
)
def test_what_does_not_go_with_two_speeds_is_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        validate(small_config(**{"model__plan": "1x4", "loop__nest": "two_stacks", **keys}))


def test_counts_exits_and_shared_caches_are_refused() -> None:
    config = model_of("two_stacks").config
    with pytest.raises(UserError, match=r"needs config\.counts\.distribution='fixed'"):
        make_job(
            small_config(model__plan="1x4", loop__nest="two_stacks", counts__distribution="uniform")
        )
    with pytest.raises(UserError, match=r"exit=state:0\.03: with config\.loop\.nest"):
        ExitRule("state", 0.03).check(config)
    for cache in ("per_loop", "ring:3", "ring:6"):
        CachePolicy.parse(cache).check(config, None)
    for cache in ("last", "mean", "ring:2"):
        with pytest.raises(UserError, match=f"cache={cache}: loops of config.loop.nest"):
            CachePolicy.parse(cache).check(config, None)


def test_numbers_of_more_cycles_than_there_are_and_a_stack_that_never_learns_are_refused() -> None:
    keys = {"loop__nest": "two_stacks", "loop__low_loops": 1}
    with pytest.raises(UserError, match="has 3 numbers for the 2 cycles of 1x4"):
        make_job(small_config(model__plan="1x4", loop__low_gradient_loops=(0, 1, 1), **keys))
    with pytest.raises(UserError, match="the low stack of 1x4 would not be trained"):
        make_job(small_config(model__plan="1x4", loop__low_gradient_loops=(0, 0), **keys))
    model = model_of("two_stacks", low_gradient_loops=(0, 1))
    check_loops(model, 3)  # Evaluated with the last of its two cycles.


def test_what_is_watched_is_of_the_state_that_a_loop_updates() -> None:
    model = model_of("two_stacks", "1x4", low_loops=1)
    params = random_params(model, 0.2)
    output = batch_forward(model, params, ROWS, wanted=Wanted(states=True, watched=True))
    of_loops = output.segments[0]
    _, high, _, higher = (np.asarray(of_loops.x_BTD[t], np.float64) for t in range(4))
    update = np.linalg.norm(higher - high, axis=-1) / np.linalg.norm(higher, axis=-1)
    found = np.asarray(of_loops.watched["relative_update"][3])
    token_BT = ROWS["segment_ids"] > 0
    np.testing.assert_allclose(found, np.sum(update * token_BT, axis=1), rtol=1e-4)
