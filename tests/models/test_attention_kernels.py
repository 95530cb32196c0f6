"""Kernels of backends against the reference in plain JAX, as far as they run here.

Pallas kernels run in its interpreter. For cuDNN stands what JAX promises of it, its own check of
what it takes included; and programs for GPUs are lowered, which needs none.
"""

import dataclasses
import functools
import re
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import small_config
from jax._src.cudnn import fused_attention_stablehlo as cudnn

from looped_jax.data.tasks.registry import get_task, task_names
from looped_jax.errors import UserError
from looped_jax.models import attention_kernels
from looped_jax.models.attention import causal_attention
from looped_jax.models.attention_kernels import attention, choose_kernel, splash_flops
from looped_jax.models.config import ModelConfig
from looped_jax.models.transformer import LoopedTransformer
from looped_jax.parallel.backend import CPU, GPU, TPU, backend_of
from looped_jax.parallel.mesh import make_mesh, mesh_context
from looped_jax.training.train_step import loss_and_grads

LENGTH = 256
A100 = dataclasses.replace(GPU, capability=(8, 0))
H100 = dataclasses.replace(GPU, capability=(9, 0))


def arrays(groups: int, rows: int = 2, length: int = LENGTH, size: int = 64) -> tuple[Any, ...]:
    rng = np.random.default_rng(0)
    q = rng.normal(size=(rows, length, 4, size)).astype(np.float32)
    k, v = (rng.normal(size=(rows, length, groups, size)).astype(np.float32) for _ in "kv")
    segments = 1 + (np.arange(length) >= np.array([[100], [0], [200], [31]][:rows])).astype(
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


@pytest.mark.parametrize(
    ("groups", "length", "size"), [(4, 256, 64), (2, 130, 64), (2, 75, 20), (1, 64, 128)]
)
def test_the_triton_kernel_gives_what_the_reference_gives(
    groups: int, length: int, size: int
) -> None:
    q, k, v, segments = arrays(groups, length=length, size=size)
    segments[:, -9:] = 0  # Padding.
    triton = functools.partial(attention, "triton", interpret=True)
    expected = with_gradients(causal_attention, q, k, v, segments)
    assert_close(with_gradients(triton, q, k, v, segments), expected, 2e-3)
    alone = with_gradients(causal_attention, q, k, v, None)
    assert_close(with_gradients(triton, q, k, v, None), alone, 2e-3)


def test_the_triton_kernel_works_on_parts_of_the_batch_and_heads() -> None:
    config = small_config(mesh__data=2, mesh__fsdp=2, mesh__tensor=2)
    inputs = arrays(2, rows=4, length=96)
    expected = with_gradients(causal_attention, *inputs)
    with mesh_context(make_mesh(config), config.mesh.rules, jnp.float32):
        triton = functools.partial(attention, "triton", interpret=True)
        assert_close(with_gradients(triton, *inputs), expected, 2e-3)


@pytest.fixture
def cudnns_contract(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """In the place of cuDNN what JAX says that it computes, refusing what JAX refuses when there
    is a gradient; the calls."""
    plain, calls = jax.nn.dot_product_attention, []

    def promised(q: Any, k: Any, v: Any, **how: Any) -> Any:
        assert how.pop("implementation") == "cudnn"
        bias, training = True, True
        cudnn.check_is_flash_attention(
            q, k, v, cudnn.AttentionLayout.BTNH.value, 91000, bias, training
        )
        calls.append(how)
        return plain(q, k, v, implementation="xla", **how)

    monkeypatch.setattr(jax.nn, "dot_product_attention", promised)
    return calls


@pytest.mark.parametrize("length", [256, 255])
def test_cudnn_is_given_what_makes_it_compute_the_reference(
    cudnns_contract: list[dict[str, Any]], length: int
) -> None:
    q, k, v, segments = arrays(2, length=length)
    packed = functools.partial(attention, "cudnn")
    expected = with_gradients(causal_attention, q, k, v, segments)
    assert_close(with_gradients(packed, q, k, v, segments), expected, 1e-4)
    alone = with_gradients(causal_attention, q, k, v, None)
    assert_close(with_gradients(packed, q, k, v, None), alone, 1e-4)
    assert [(call["mask"] is None, call["is_causal"]) for call in cudnns_contract] == [
        (False, True),
        (True, True),
    ]


def test_cudnn_needs_no_mask_for_rows_of_one_document(
    cudnns_contract: list[dict[str, Any]],
) -> None:
    q, k, v, _ = arrays(4)
    segments = np.broadcast_to(np.arange(LENGTH) < 200, (2, LENGTH)).astype(np.int32)
    found = attention("cudnn", q, k, v, segments, one_document=True)
    expected = causal_attention(q, k, v, segments)
    np.testing.assert_allclose(found[:, :200], expected[:, :200], rtol=1e-4, atol=1e-4)
    assert np.all(np.isfinite(found))
    assert cudnns_contract[0]["mask"] is None


@pytest.mark.parametrize(("sequence", "length"), [(4, 256), (2, 126)])
def test_cudnn_sees_all_keys_before_queries_that_are_split_over_devices(
    cudnns_contract: list[dict[str, Any]], sequence: int, length: int
) -> None:
    config = small_config(mesh__data=2, mesh__sequence=sequence)
    inputs = arrays(2, length=length)
    expected = with_gradients(causal_attention, *inputs)
    with mesh_context(make_mesh(config), config.mesh.rules, jnp.float32):
        split = functools.partial(attention, "cudnn")
        assert_close(with_gradients(split, *inputs), expected, 1e-4)
    assert not cudnns_contract[0]["is_causal"]  # It would count queries from the first key.


def test_the_kernel_follows_from_platform_length_heads_and_type() -> None:
    usual = dict(length=1280, head_size=64, dtype="bfloat16")

    def chosen(backend: Any, kernel: str = "auto", **other: Any) -> str:
        return choose_kernel(kernel, backend, **{**usual, **other})

    assert chosen(TPU) == "splash"
    assert chosen(TPU, length=100) == "xla"
    assert chosen(CPU) == "xla"
    assert chosen(H100) == chosen(A100) == chosen(H100, length=1281) == "triton"
    assert chosen(H100, packed=False) == chosen(H100, packed=False, length=255) == "cudnn"
    assert chosen(H100, packed=False, head_size=20) == "triton"
    assert chosen(H100, split=True) == chosen(H100, head_size=256) == "cudnn"
    assert chosen(A100, head_size=256) == chosen(H100, head_size=12) == "xla"
    assert chosen(H100, dtype="float32") == "xla"
    assert chosen(GPU) == "xla"  # Of another maker, or too old.
    for backend, kernel, other, message in (
        (TPU, "splash", dict(length=100), "multiple of 128 tokens"),
        (CPU, "cudnn", {}, "needs an NVIDIA GPU"),
        (dataclasses.replace(GPU, capability=(7, 5)), "triton", {}, "capability 8.0"),
        (H100, "cudnn", dict(dtype="float32"), "dtype='bfloat16'; it is 'float32'"),
        (H100, "cudnn", dict(head_size=60), "multiple of 8, here up to 256; they are of 60"),
        (A100, "cudnn", dict(head_size=136), "up to 128"),
        (H100, "triton", dict(head_size=8), "heads of 16 to 128"),
        (H100, "triton", dict(split=True), "mesh.sequence must be 1"),
    ):
        with pytest.raises(UserError, match=message):
            chosen(backend, kernel, **other)


def test_without_its_module_the_triton_kernel_is_not_chosen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attention_kernels, "_TRITON", "jax.no_such_module")
    usual = dict(length=1280, head_size=64, dtype="bfloat16")
    assert choose_kernel("auto", H100, **usual) == "cudnn"
    with pytest.raises(UserError, match="this release of JAX is without; 'cudnn' does not"):
        choose_kernel("triton", H100, **usual)


@pytest.mark.parametrize("backend", [A100, H100], ids=["A100", "H100"])
def test_cudnn_is_refused_exactly_where_jax_would_raise(
    backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def at_least(capability: str) -> bool:
        return backend.capability >= tuple(int(part) for part in capability.split("."))

    monkeypatch.setattr(cudnn, "check_compute_capability", at_least)

    def jax_takes(length: int, size: int) -> bool:
        row = jax.ShapeDtypeStruct((2, length + length % 2, 4, size), jnp.bfloat16)
        layout, bias, training = cudnn.AttentionLayout.BTNH.value, True, True
        try:
            cudnn.check_is_flash_attention(row, row, row, layout, 91000, bias, training)
        except NotImplementedError:
            return False
        return True

    def we_take(length: int, size: int) -> bool:
        try:
            choose_kernel("cudnn", backend, length=length, head_size=size, dtype="bfloat16")
        except UserError:
            return False
        return True

    for length in (1, 2, 97, 255, 256, 1280):
        for size in range(1, 300):
            assert we_take(length, size) == jax_takes(length, size), (length, size)


def test_the_gpu_says_what_it_can() -> None:
    def found(**device: Any) -> Any:
        devices = np.array([SimpleNamespace(platform="gpu", **device)])
        return backend_of(SimpleNamespace(devices=devices)).capability

    assert found(compute_capability="9.0") == (9, 0)
    assert found(compute_capability="10.3") == (10, 3)
    assert found(compute_capability="gfx942") == found() == (0, 0)


@pytest.fixture
def for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function's program for NVIDIA GPUs, as JAX hands it to the compiler."""
    monkeypatch.setattr(cudnn, "cuda_versions", SimpleNamespace(cudnn_get_version=lambda: 91000))
    monkeypatch.setattr(cudnn, "check_compute_capability", lambda capability: True)

    def lowered(function: Any, *arguments: Any) -> str:
        return jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()

    return lowered


def scores(program: str, *lengths: int) -> list[str]:
    """Arrays of a program whose last axes are queries and keys."""
    return [x for n in lengths for x in re.findall(rf"tensor<[\dx]*\b{n}x{n}x\w+>", program)]


def test_every_synthetic_task_lowers_for_gpus_in_bfloat16(for_a_gpu: Any) -> None:
    for length in sorted({get_task(name).row_length for name in task_names()}):
        kernel = choose_kernel(
            "auto", A100, length=length, head_size=32, dtype="bfloat16", packed=False
        )
        assert kernel == "cudnn"
        row = jax.ShapeDtypeStruct((2, length, 4, 32), jnp.bfloat16)

        def out(q: Any, k: Any, v: Any) -> Any:
            return jnp.sum(attention("cudnn", q, k, v, None).astype(jnp.float32))

        program = for_a_gpu(jax.grad(out, (0, 1, 2)), row, row, row)
        assert "fmhaSoftmaxBackward" in program and "CAUSAL" in program


@pytest.mark.parametrize(
    ("packed", "call"), [(True, "xla.gpu.triton"), (False, "cudnn$fmhaSoftmax")]
)
def test_no_square_of_a_rows_tokens_is_in_a_gpus_training_step(
    for_a_gpu: Any, packed: bool, call: str
) -> None:
    length = 160  # Padded to 192 by one of the kernels.
    config = small_config(model__dtype="bfloat16", model__d_model=64, model__plan="2x2")
    sizes = dict(vocab_size=16, max_length=length, backend=H100, packed=packed)
    model = LoopedTransformer(ModelConfig.from_config(config, **sizes))
    ids = jax.ShapeDtypeStruct((4, length), jnp.int32)
    weights = jax.ShapeDtypeStruct((4, length), jnp.float32)
    batch = dict(tokens=ids, targets=ids, segment_ids=ids, positions=ids, loss_weights=weights)
    params = jax.eval_shape(model.init, jax.random.key(0), np.zeros((4, length), np.int32))

    def program(kernel: str) -> str:
        one = LoopedTransformer(dataclasses.replace(model.config, attention=kernel))
        return for_a_gpu(lambda p, b: loss_and_grads(one, p["params"], b), params, batch)

    chosen = program(model.config.attention)
    assert call in chosen
    assert not scores(chosen, length, 192)
    assert scores(program("xla"), length)  # So it would be seen.


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="they need an NVIDIA GPU")
@pytest.mark.parametrize("kernel", ["cudnn", "triton"])
@pytest.mark.parametrize("length", [256, 255])
def test_the_gpus_kernels_give_what_the_reference_gives(kernel: str, length: int) -> None:
    q, k, v, segments = arrays(2, length=length)
    q, k, v = (x.astype(jnp.bfloat16) for x in (q, k, v))
    found = with_gradients(functools.partial(attention, kernel), q, k, v, segments)
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
