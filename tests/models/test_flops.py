from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import init, random_rows, small_model, token_logits

from looped_jax.cost.compiled import cost
from looped_jax.models.flops import forward_flops, train_flops
from looped_jax.training.train_step import loss_and_grads

# Wide enough that element-wise work, which only the compiler counts, is a small part.
SHAPE = dict(vocab_size=512, d_model=512, d_ff=2048, num_heads=8, num_kv_heads=8, max_length=64)


def measured(plan: str, **fields: Any) -> float:
    """FLOPs that XLA counts, all loops laid out (it counts a rolled loop's body once)."""
    model = small_model(plan, unroll="full", **{**SHAPE, **fields})
    tokens = jnp.zeros((4, 64), jnp.int32)
    logits = jax.jit(lambda params, tokens: token_logits(model, params, tokens))
    compiled = logits.lower(init(model), tokens).compile()
    return compiled.cost_analysis()["flops"]


@pytest.mark.parametrize("plan", ["2x3", "1x1,1x3,1x1", "4x1"])
@pytest.mark.parametrize(
    "fields", [{}, dict(mlp="swiglu", num_kv_heads=2, attention_gate=True)], ids=str
)
def test_counted_flops_agree_with_the_compiler(plan: str, fields: dict[str, Any]) -> None:
    config = small_model(plan, **{**SHAPE, **fields}).config
    assert measured(plan, **fields) == pytest.approx(forward_flops(config, 4, 64), rel=0.05)
    assert measured(plan, **fields) >= forward_flops(config, 4, 64)


@pytest.mark.parametrize(
    ("plan", "loop"),
    [
        ("2x3", ()),
        ("1x1,1x3,1x1", (("injection", "decay"),)),
        ("6x1", ()),
        ("1x3", (("injection", "concat"),)),
        ("2x3", (("lanes", "hyper"), ("per_loop", "lora"))),
        ("1x3", (("lanes", "hyperloop"),)),
        ("1x8", (("nest", "two_stacks"),)),
    ],
)
def test_counted_flops_of_a_step_are_the_products_of_the_compiled_step(
    plan: str, loop: tuple[tuple[str, str], ...]
) -> None:
    model = small_model(plan, unroll="none", loop=loop, **SHAPE)
    rows = random_rows(rows=4, length=64, vocab=512)
    step = jax.jit(lambda params, batch: loss_and_grads(model, params, batch))
    compiled = step.lower(init(model), rows).compile()
    # Loops are counted as often as they run, see cost/compiled.py.
    found = cost(compiled.as_text()).flops
    assert found == pytest.approx(train_flops(model.config, 4, 64), rel=0.01)


def test_looped_flops_equal_those_of_the_unshared_stack() -> None:
    looped, stack = (small_model(plan, **SHAPE).config for plan in ("2x3", "6x1"))
    assert train_flops(looped, 4, 64) == train_flops(stack, 4, 64)
    np.testing.assert_allclose(measured("2x3"), measured("6x1"), rtol=0.01)
