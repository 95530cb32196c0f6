from types import SimpleNamespace

import jax

from looped_jax.cost.peak_flops import PEAK_BF16_FLOPS, peak_flops


def test_a_known_accelerator_has_its_makers_number() -> None:
    assert peak_flops(SimpleNamespace(platform="tpu", device_kind="TPU v5p")) == 459e12
    assert peak_flops(SimpleNamespace(platform="gpu", device_kind="NVIDIA H100 PCIe")) == 756.5e12
    assert all(1e14 < flops < 1e16 for flops in PEAK_BF16_FLOPS.values())


def test_an_unknown_accelerator_has_none() -> None:
    assert peak_flops(SimpleNamespace(platform="gpu", device_kind="NVIDIA T1000")) is None
    assert peak_flops(SimpleNamespace(platform="tpu", device_kind="TPU v99")) is None


def test_a_cpu_is_measured_and_shared_by_its_emulated_devices() -> None:
    flops = peak_flops(jax.devices()[0])
    assert flops is not None
    flops *= len(jax.local_devices())
    assert 1e9 < flops < 1e14  # Any CPU of this century.
