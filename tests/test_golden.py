"""Nothing moves unseen: costs and losses against committed figures (tests/golden.py)."""

import importlib.util

import flax.linen as nn
import golden
import numpy as np
import pytest

from looped_jax.models import layers
from looped_jax.models.format import MODEL_FORMAT

RENEW = "; if that is meant: python tests/golden.py"


@pytest.mark.parametrize("name", golden.ON_CPU)
def test_a_device_computes_its_share_of_the_model_and_no_more(name: str) -> None:
    found = golden.cost("cpu", name)
    assert found["flops"] == pytest.approx(found["model_flops"], rel=0.25)


def assert_as_committed(where: str, name: str) -> None:
    expected, found = golden.read_costs()[f"{where}: {name}"], golden.cost(where, name)
    if where == golden.TOPOLOGY and not golden.same_compiler():
        # Another TPU compiler may do with less, not with more, in all.
        for key in ("flops", "wire_bytes", "temporary_bytes"):
            assert found[key] <= 1.01 * expected[key], key
        return
    assert set(expected) == set(found)
    for key, value in expected.items():
        # Memory is laid out by heuristics that see the machine; what is computed and sent is not.
        tolerance = 0.05 if key == "temporary_bytes" else 0.001
        assert found[key] == pytest.approx(value, rel=tolerance), f"{key}{RENEW}"


@pytest.mark.parametrize("name", golden.ON_CPU)
def test_a_step_costs_what_it_cost_on_every_mesh(name: str) -> None:
    assert_as_committed("cpu", name)


@pytest.mark.parametrize("name", golden.ON_TPU)
def test_a_step_costs_what_it_cost_on_a_tpu(name: str) -> None:
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("the TPU compiler, libtpu, is not installed")
    assert_as_committed(golden.TOPOLOGY, name)


@pytest.mark.parametrize("name", golden.MODELS)
def test_losses_are_those_of_this_numerics_format(name: str) -> None:
    committed = golden.read_losses()
    assert committed["format"] == MODEL_FORMAT, f"MODEL_FORMAT was raised{RENEW}"
    np.testing.assert_allclose(
        golden.losses(name),
        committed["losses"][name],
        rtol=golden.tolerance(name),
        err_msg=f"numbers moved: raise MODEL_FORMAT in looped_jax/models/format.py, then {RENEW}",
    )


@pytest.mark.parametrize("change", ["epsilon", "gelu"])
def test_a_small_change_of_the_numbers_is_noticed(
    change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if change == "epsilon":
        monkeypatch.setitem(golden.MODELS, "plain", {"model__plan": "1x2", "model__norm_eps": 1e-5})
    else:
        monkeypatch.setattr(layers, "gelu", lambda x: nn.gelu(x, approximate=False))
    found, expected = golden.losses.__wrapped__("plain"), golden.read_losses()["losses"]["plain"]
    assert not np.allclose(found, expected, rtol=golden.tolerance("plain"))


def test_what_moved_is_said() -> None:
    old = {"a": {"flops": 100.0}, "b": [1.0, 2.0], "c": {}}
    new = {"a": {"flops": 150.0}, "b": [1.0, 2.5], "d": {}}
    assert golden.moved(old, new) == [
        "a, flops: 100.0 -> 150.0 (+50.00%)",
        "b, 1: 2.0 -> 2.5 (+25.00%)",
        "c: gone",
        "d: new",
    ]
