from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import init, small_model

from looped_jax.models.flops import forward_flops, train_flops

SHAPE = dict(vocab_size=64, d_model=64, d_ff=256, max_length=64)


def measured(plan: str, **fields: Any) -> float:
    """FLOPs that XLA counts, all loops laid out (it counts a rolled loop's body once)."""
    model = small_model(plan, unroll="full", **SHAPE, **fields)
    tokens = jnp.zeros((4, 64), jnp.int32)
    compiled = jax.jit(model.apply).lower({"params": init(model)}, tokens).compile()
    return compiled.cost_analysis()["flops"]


@pytest.mark.parametrize("fields", [{}, dict(mlp="swiglu", num_kv_heads=2)], ids=str)
def test_counted_flops_agree_with_the_compiler(fields: dict[str, Any]) -> None:
    config = small_model("2x3", **SHAPE, **fields).config
    # The compiler also counts element-wise work, some percent at this width.
    assert measured("2x3", **fields) == pytest.approx(forward_flops(config, 4, 64), rel=0.12)
    assert measured("2x3", **fields) >= forward_flops(config, 4, 64)


def test_looped_flops_equal_those_of_the_unshared_stack() -> None:
    looped, stack = (small_model(plan, **SHAPE).config for plan in ("2x3", "6x1"))
    assert train_flops(looped, 4, 64) == train_flops(stack, 4, 64)
    np.testing.assert_allclose(measured("2x3"), measured("6x1"), rtol=0.01)
