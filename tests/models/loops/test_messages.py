"""Messages from the loop before: what they are and refuse; more in test_loop_variants.py."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import batch_logits, init, random_rows, small_config, small_model

from looped_jax.config import validate
from looped_jax.errors import UserError
from looped_jax.models.loops.base import LoopContext, LoopState
from looped_jax.models.loops.messages import BlockMessages

ROWS = random_rows(rows=2)


def test_one_loop_gets_no_message() -> None:
    model = small_model("2x3", loop=(("messages", "blocks"),))
    params = init(model)
    plain = small_model("2x3")
    found = batch_logits(model, params, ROWS, 1)
    layer = params["segment_0"]["layers"]["layer"]
    own = {
        name: of
        for name, of in layer.items()
        if name in init(plain)["segment_0"]["layers"]["layer"]
    }
    params = {**params, "segment_0": {"layers": {"layer": own}}}
    np.testing.assert_allclose(found, batch_logits(plain, params, ROWS, 1), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("block", "places"), [(1, [1, 2, 3, 4]), (2, [2, 4]), (3, [3]), (6, [])])
def test_messages_are_of_the_ends_of_blocks_and_of_the_loop(block: int, places: list[int]) -> None:
    config = small_model("5x2", loop=(("messages", "blocks"),), message_block=block).config
    stream_BTD = jnp.zeros((1, 3, config.d_model))
    context = LoopContext(stream_BTD, None, layers=5)  # type: ignore[arg-type]
    variant = BlockMessages(config)
    started = variant.start(LoopState(stream_BTD), context)
    entered = jnp.arange(5.0)[:, None, None, None] + stream_BTD
    state = started.replace(entered=entered, x_BTD=stream_BTD + 9)
    said = variant.leave(state, context, jnp.int32(0)).extra["messages"]
    assert said[0, 0, :, 0].tolist() == [*places, 9]
    assert said.shape == started.extra["messages"].shape


def test_halted_tokens_have_messages_too() -> None:
    model = small_model("2x3", loop=(("messages", "blocks"), ("gate", "act")))
    found = jax.eval_shape(lambda: batch_logits(model, init(model), ROWS))
    assert found.shape[:2] == ROWS["tokens"].shape


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("injection", "add"),
        ("lanes", "hyper"),
        ("nest", "one_stack"),
        ("routing", "token_choice"),
    ],
)
def test_what_a_loop_that_starts_again_cannot_have_is_refused(option: str, value: str) -> None:
    keys: dict[str, Any] = {"loop__messages": "blocks", f"loop__{option}": value}
    with pytest.raises(UserError, match=f"config.loop.{option}=.*, not '{value}'"):
        validate(small_config(model__plan="1x4", **keys))
