"""Peak FLOP/s of a device: what `perf/mfu` divides by."""

import time

import jax
import jax.numpy as jnp

# Dense bf16, per JAX device, by `device_kind`: the makers' data sheets (Google Cloud TPU system
# architecture pages; NVIDIA's of each product, where figures with sparsity are twice these).
PEAK_BF16_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "TPU7x": 2307e12 / 2,  # Each of a chip's two TensorCores is a device.
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H100 PCIe": 1513e12 / 2,
    "NVIDIA H200": 989e12,
    "NVIDIA GH200 480GB": 989e12,
    "NVIDIA B200": 2250e12,
}
_SIZE = 1024


def peak_flops(device: jax.Device) -> float | None:
    """Peak FLOP/s of one device; None for an accelerator that the table above does not have.

    Of a CPU: the best of five float32 matrix products of 1024 x 1024, measured now, shared by the
    devices emulated on it.
    """
    if device.platform != "cpu":
        return PEAK_BF16_FLOPS.get(device.device_kind)
    matrix = jax.device_put(jnp.ones((_SIZE, _SIZE)), device)
    product = jax.jit(jnp.matmul)
    product(matrix, matrix).block_until_ready()
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        product(matrix, matrix).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * _SIZE**3 / min(seconds) / len(jax.local_devices())
