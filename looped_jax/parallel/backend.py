"""What is done otherwise on one kind of device than on another: one record of each kind.

None of it changes what is computed, but for the order in which sums are rounded.
"""

import dataclasses
import re
from typing import Any

from jax.sharding import Mesh


@dataclasses.dataclass(frozen=True)
class Backend:
    """A kind of device, and what suits it."""

    platform: str  # As JAX names it: cpu | gpu | tpu.
    # Products of matrices alone: models/execution.py.
    flat_products: bool = False
    # With config.model.unroll='auto' the scans of a segment of up to so many layers, loops counted,
    # are laid out straight. XLA runs a while loop's body slower than the same operations: on CPU by
    # 20-40% (docs/performance.md), where a compile of these is also cheap. Deeper models keep both
    # scans rolled, so that compile time stays bounded.
    unrolled_layers: int = 0
    # Fused attention kernels, of which config.model.attention='auto' takes the first that can run:
    # for rows of one document each, and for packed ones.
    attention: tuple[str, ...] = ()
    packed_attention: tuple[str, ...] = ()
    # Of an NVIDIA GPU its compute capability: what its kernels need.
    capability: tuple[int, int] = (0, 0)
    # NumPy reads its arrays in place, and sums integers ten times as fast as XLA does.
    arrays_in_host_memory: bool = False


CPU = Backend("cpu", flat_products=True, unrolled_layers=12, arrays_in_host_memory=True)
GPU = Backend("gpu", attention=("cudnn", "triton"), packed_attention=("triton", "cudnn"))
TPU = Backend("tpu", attention=("splash",), packed_attention=("splash",))
BACKENDS = {backend.platform: backend for backend in (CPU, GPU, TPU)}


def backend_of(mesh: Mesh) -> Backend:
    """Of the devices of a mesh, which are all of one kind; of an unknown one what is XLA's own."""
    device = mesh.devices.flat[0]
    backend = BACKENDS.get(device.platform, Backend(device.platform))
    return dataclasses.replace(backend, capability=_capability(device))


def _capability(device: Any) -> tuple[int, int]:
    """(9, 0) of an H100; (0, 0) of what is no NVIDIA GPU (AMD's say gfx942 and the like)."""
    said = re.fullmatch(r"(\d+)\.(\d+)", str(getattr(device, "compute_capability", "")))
    return (int(said[1]), int(said[2])) if said else (0, 0)
