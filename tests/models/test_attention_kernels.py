"""Kernels of backends against the reference in plain JAX, as far as they run here."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import small_config

from looped_jax.errors import UserError
from looped_jax.models.attention import causal_attention
from looped_jax.models.attention_kernels import attention, choose_kernel, splash_flops
from looped_jax.parallel.backend import CPU, GPU, TPU
from looped_jax.parallel.mesh import make_mesh, mesh_context

LENGTH = 256


def arrays(groups: int, rows: int = 2) -> tuple[Any, ...]:
    rng = np.random.default_rng(0)
    q = rng.normal(size=(rows, LENGTH, 4, 64)).astype(np.float32)
    k, v = (rng.normal(size=(rows, LENGTH, groups, 64)).astype(np.float32) for _ in "kv")
    segments = 1 + (np.arange(LENGTH) >= np.array([[100], [0], [200], [31]][:rows])).astype(
        np.int32
    )
    return q, k, v, segments


def with_gradients(run: Any, q: Any, k: Any, v: Any, segments: Any) -> Any:
    def scalar(q: Any, k: Any, v: Any) -> Any:
        out = run(q, k, v, segments)
        return jnp.sum(jnp.sin(out)), out

    grad = jax.value_and_grad(scalar, argnums=(0, 1, 2), has_aux=True)
    (_, out), grads = jax.jit(grad)(q, k, v)
    return jax.device_get((out, *grads))


def assert_close(found: Any, expected: Any, tolerance: float) -> None:
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("groups", [4, 2])
def test_the_tpu_kernel_gives_what_the_reference_gives(groups: int) -> None:
    inputs = arrays(groups)
    splash = functools.partial(attention, "splash", interpret=True)
    assert_close(with_gradients(splash, *inputs), with_gradients(causal_attention, *inputs), 2e-3)


@pytest.mark.parametrize(
    "mesh",
    [dict(mesh__data=2, mesh__tensor=2), dict(mesh__data=2, mesh__sequence=2, mesh__tensor=2)],
    ids=["tensor", "tensor and sequence"],
)
def test_the_tpu_kernel_works_on_parts_of_the_batch_heads_and_length(mesh: dict) -> None:
    config = small_config(**mesh)
    inputs = arrays(4)
    expected = with_gradients(causal_attention, *inputs)
    with mesh_context(make_mesh(config), config.mesh.rules, jnp.float32):
        splash = functools.partial(attention, "splash", interpret=True)
        assert_close(with_gradients(splash, *inputs), expected, 2e-3)


def test_queries_split_over_devices_see_all_keys_before_them() -> None:
    config = small_config(mesh__data=2, mesh__sequence=4)
    inputs = arrays(2)
    expected = with_gradients(causal_attention, *inputs)
    with mesh_context(make_mesh(config), config.mesh.rules, jnp.float32):
        split = functools.partial(attention, "xla")
        assert_close(with_gradients(split, *inputs), expected, 1e-5)


def test_the_kernel_follows_from_platform_length_and_type() -> None:
    assert choose_kernel("auto", TPU, 1280, "bfloat16") == "splash"
    assert choose_kernel("auto", TPU, 100, "bfloat16") == "xla"
    assert choose_kernel("auto", GPU, 1280, "bfloat16") == "cudnn"
    assert choose_kernel("auto", GPU, 1280, "float32") == "xla"
    assert choose_kernel("auto", CPU, 1280, "bfloat16") == "xla"
    with pytest.raises(UserError, match="multiple of 128 tokens"):
        choose_kernel("splash", TPU, 100, "bfloat16")
    with pytest.raises(UserError, match="needs an NVIDIA GPU"):
        choose_kernel("cudnn", CPU, 128, "bfloat16")


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="cuDNN needs an NVIDIA GPU")
def test_the_gpu_kernel_gives_what_the_reference_gives() -> None:
    q, k, v, segments = arrays(4)
    q, k, v = (x.astype(jnp.bfloat16) for x in (q, k, v))
    found = with_gradients(functools.partial(attention, "cudnn"), q, k, v, segments)
    assert_close(found, with_gradients(causal_attention, q, k, v, segments), 3e-2)


def test_flops_of_the_tpu_kernel_leave_out_the_blocks_above_the_diagonal() -> None:
    class Config:
        max_length, head_dim = 1280, 64

    # Two blocks of 640 by 640: three of four are computed, by two products of 2 x 64 FLOPs an
    # element forward and five backward; 8 rows of 32 heads.
    one_product = 8 * 32 * 2 * 64 * 0.75 * 1280**2
    forward = [(8, 640, 128), (8, 32, 1280, 64), (8, 32, 1280, 128)]
    # The queries' gradient is first summed for each block of keys.
    backward = [(8, 640, 128), (8, 2, 32, 1280, 64), (8, 32, 1280, 64)]
    assert splash_flops("splash_mha_fwd_residuals.3", forward, Config, 1) == 2 * one_product
    assert splash_flops("splash_mha_dkv_no_residuals", backward, Config, 2) == 5 * one_product / 2
    assert splash_flops("sort", forward, Config, 1) == 0
    # Of one row on a device no result has an axis for it.
    forward, backward = ([dims[1:] for dims in shapes] for shapes in (forward, backward))
    assert splash_flops("splash_mha_fwd_residuals.3", forward, Config, 1) == 2 * one_product / 8
    assert splash_flops("splash_mha_dkv_no_residuals", backward, Config, 1) == 5 * one_product / 8
