"""What every loop would say: it is what a model that ends there says."""

from typing import Any

import jax
import numpy as np
import pytest
from helpers import batch_logits, random_params, small_model

from looped_jax.errors import UserError
from looped_jax.inside.lens import exit_depths, jitted_lens
from looped_jax.models.loops.exits import ExitRule
from looped_jax.models.loops.segment import Wanted
from looped_jax.models.transformer import forward, layer_inputs, logits, next_token

LOOPS = 3
MODEL = small_model(f"1x1,2x{LOOPS},1x1", ids_in_use=13)
PARAMS = random_params(MODEL)
TOKENS = np.random.default_rng(0).integers(3, 13, size=(2, 9)).astype(np.int32)
ONES = np.ones_like(TOKENS)
TARGETS = np.roll(TOKENS, -1, axis=1)


def seen(**more: Any) -> Any:
    return jax.device_get(jitted_lens(MODEL, PARAMS, TOKENS, ONES, TARGETS, segment=1, **more))


def log_p_of(loops: int) -> np.ndarray:
    rows = {"tokens": TOKENS, "segment_ids": None, "positions": None}
    return np.asarray(jax.nn.log_softmax(batch_logits(MODEL, PARAMS, rows, loops)))


def test_a_loop_says_what_a_model_that_ends_there_says() -> None:
    found = seen()
    assert found.states_LBTD.shape == (LOOPS, 2, 9, 16)
    last = log_p_of(LOOPS)
    for loop in range(LOOPS):
        log_p = log_p_of(loop + 1)
        order = np.argsort(-log_p, axis=-1)
        np.testing.assert_array_equal(found.top_LBTN[loop], order[..., :5])
        of_top = np.take_along_axis(log_p, order[..., :5], -1)
        np.testing.assert_allclose(found.top_log_p_LBTN[loop], of_top, rtol=1e-4, atol=1e-4)
        real = log_p[..., :13]
        kl = np.sum(np.exp(last[..., :13]) * (last[..., :13] - real), axis=-1)
        np.testing.assert_allclose(found.kl_LBT[loop], kl, rtol=1e-3, atol=1e-4)
        entropy = -np.sum(np.exp(real) * real, axis=-1)
        np.testing.assert_allclose(found.entropy_LBT[loop], entropy, rtol=1e-4, atol=1e-4)
        of_target = np.take_along_axis(log_p, TARGETS[..., None], -1)
        np.testing.assert_allclose(found.target_log_p_LBT[loop], of_target[..., 0], atol=1e-4)
        rank = 1 + (log_p > of_target).sum(-1)
        np.testing.assert_array_equal(found.target_rank_LBT[loop], rank)
    np.testing.assert_allclose(found.kl_LBT[-1], 0.0, atol=1e-5)


def test_changes_are_of_the_states() -> None:
    found = seen()
    states = found.states_LBTD
    np.testing.assert_allclose(found.norm_LBT, np.linalg.norm(states, axis=-1), rtol=1e-5)
    assert np.isnan(found.update_LBT[0]).all() and np.isnan(found.cosine_LBT[0]).all()
    for loop in (1, 2):
        now, before = states[loop], states[loop - 1]
        size = np.linalg.norm(now, axis=-1)
        update = np.linalg.norm(now - before, axis=-1) / size
        np.testing.assert_allclose(found.update_LBT[loop], update, rtol=1e-4)
        cosine = (now * before).sum(-1) / size / np.linalg.norm(before, axis=-1)
        np.testing.assert_allclose(found.cosine_LBT[loop], cosine, rtol=1e-4)


@pytest.mark.parametrize("segment", [0, 1])
def test_of_several_looped_segments_each_can_be_seen(segment: int) -> None:
    model = small_model("2x2,1x3")
    params = random_params(model)
    given = (model, params, TOKENS, ONES, TARGETS)
    found = jitted_lens(*given, segment=segment)
    output = forward(model, params, TOKENS, ONES, wanted=Wanted(states=True))
    states = output.segments[segment].x_BTD
    np.testing.assert_allclose(found.states_LBTD, states, rtol=1e-4, atol=1e-5)
    say = next_token(model, params, layer_inputs(model.config, TOKENS, ONES), None, segment)
    for loop, state in enumerate(states):
        best = np.sort(say(state), axis=-1)[..., ::-1][..., :5]
        np.testing.assert_allclose(found.top_log_p_LBTN[loop], best, rtol=1e-3, atol=1e-4)
    # After the last loop it says what the model says.
    np.testing.assert_allclose(found.kl_LBT[-1], 0.0, atol=1e-5)


def test_of_a_plan_without_loops_layers_are_seen() -> None:
    model = small_model("3x1")
    params = random_params(model)
    found = jitted_lens(model, params, TOKENS, ONES, TARGETS, segment=0)
    for layers in (1, 2, 3):
        short = small_model(f"{layers}x1")
        stack = jax.tree.map(lambda leaf, count=layers: leaf[:count], params["segment_0"])
        whole = forward(short, {**params, "segment_0": stack}, TOKENS, ONES)
        log_p = jax.nn.log_softmax(logits(short.config, whole))
        of_target = np.take_along_axis(log_p, TARGETS[..., None], -1)[..., 0]
        np.testing.assert_allclose(found.target_log_p_LBT[layers - 1], of_target, atol=1e-4)


def test_more_loops_than_trained_are_seen_too() -> None:
    found = seen(loops=5)
    assert found.states_LBTD.shape[0] == found.kl_LBT.shape[0] == 5
    np.testing.assert_allclose(found.norm_LBT[:LOOPS], seen().norm_LBT, rtol=1e-4)


def test_depths_are_those_at_which_the_rule_is_met() -> None:
    found = seen(loops=6)
    rule = ExitRule("state", float(np.median(found.update_LBT[1:])), 2)
    depth_BT = np.asarray(exit_depths(MODEL, PARAMS, TOKENS, ONES, rule=rule, loops=6))
    small = np.concatenate([found.update_LBT[1:] < rule.threshold, np.ones((1, 2, 9), bool)])
    np.testing.assert_array_equal(depth_BT, np.minimum(2 + small.argmax(0), 6))
    with pytest.raises(UserError, match="asks a gate"):
        exit_depths(MODEL, PARAMS, TOKENS, ONES, rule=ExitRule("cdf", 0.5))
