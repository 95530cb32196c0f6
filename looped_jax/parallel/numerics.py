"""What a compute type means, on every backend.

Left to itself JAX lets a TPU round the operands of float32 products to bfloat16, and a GPU to TF32.
Here `float32` means float32: the precision of products follows from the model's type and from
nothing else, and is recorded in a run's run.json.
"""

import contextlib
from typing import Any

import jax
import jax.numpy as jnp


def matmul_precision(dtype: Any) -> str:
    """The precision of matrix products of a model that computes in ``dtype``, as JAX names it."""
    return "highest" if jnp.dtype(dtype) == jnp.float32 else "default"


def stated_numerics(dtype: Any) -> contextlib.AbstractContextManager[None]:
    """What is traced inside computes products in the precision of ``dtype``, also in libraries'
    kernels and in backward passes."""
    return jax.default_matmul_precision(matmul_precision(dtype))
