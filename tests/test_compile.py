"""The real TPU compiler, without a TPU, on a small model."""

import json
import pathlib
from typing import Any

import pytest
from conftest import VARIANTS

from looped_jax.cost import tpu

SMALL = [
    "--config.model.plan=2x3",
    "--config.model.d_model=128",
    "--config.model.d_ff=256",
    "--config.model.dtype=bfloat16",
    "--config.data.length=128",
    "--config.mesh.fsdp=2",
]


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("experiment") / "small.py"
    path.write_text(VARIANTS.split("    plans = ")[0] + "    return config\n")
    return path


def test_a_step_is_compiled_for_a_tpu_and_its_cost_read(
    run_module: Any, experiment: pathlib.Path
) -> None:
    arguments = [f"--config={experiment}", "--topology=v5e:2x2", *SMALL]
    done = run_module("looped_jax.compile", *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    found = json.loads(done.stdout)
    assert (found["devices"], found["device_kind"]) == (4, "TPU v5 lite")
    assert found["mesh"] == {"data": 2, "fsdp": 2, "tensor": 1, "sequence": 1}
    assert found["attention"] == "splash"
    assert found["fits"] and found["bytes_per_device"]["peak"] < 1e9
    # 2 layers have 4 x 128^2 + 2 x 128 x 256 weights each, in products, and the embedding.
    assert found["parameters"] == 2 * (4 * 128**2 + 2 * 128 * 256 + 2 * 128) + 128 + 16 * 128
    # Attention skips blocks, which there is one of, so all but element-wise work is the model's.
    ratio = found["flops_per_device"] / found["model_flops_per_device"]
    assert 0.95 < ratio < 1.05
    assert found["collective_bytes_per_device"]["all-gather"] > 0
    low, high = found["estimate"]["step_seconds"]
    assert 0 < low < high
    assert "not a measurement" in found["estimate"]["note"]


def test_slices_are_joined_by_the_network_along_data(
    run_module: Any, experiment: pathlib.Path
) -> None:
    arguments = [f"--config={experiment}", "--topology=v5e:2x2", "--slices=2", *SMALL]
    done = run_module("looped_jax.compile", *arguments)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["devices"], found["mesh"]["data"]) == (8, 4)
    # At least the gradients of what a device holds, in bfloat16 and the embedding in float32.
    assert found["bytes_between_slices_per_device"] > found["parameters"] * 2 / 2
    assert found["estimate"]["between_slices_seconds"] > 0


def test_weights_gathered_once_and_activations_on_the_host_compile_too(
    run_module: Any, experiment: pathlib.Path
) -> None:
    more = [
        "--config.model.gather=segment",
        "--config.model.remat=names",
        "--config.model.saved_names=query",
        "--config.model.offloaded_names=mlp_up",
        "--config.mesh.data=1",
        "--config.mesh.tensor=2",
    ]
    arguments = [f"--config={experiment}", "--topology=v5e:2x2", *SMALL, *more]
    done = run_module("looped_jax.compile", *arguments)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["gather"] == "segment"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--topology=v9:2x2",), "'v9' is not one of v4, v5e, v5p, v6e"),
        (("--topology=v5e",), "is not VERSION:AxB"),
        (("--topology=v5e:3x7",), "is not one that libtpu knows"),
        (("--topology=v5e:2x2", "--slices=0"), "--slices=0 must be at least 1"),
        ((), "say --topology"),
        (("--topology=v5e:2x2", "--config.mesh.fsdp=3"), "4 devices do not divide by 3"),
        (
            ("--topology=v5e:2x2", "--slices=2", "--config.mesh.fsdp=8", "--config.mesh.data=1"),
            "of 2 slices, which share out data evenly",
        ),
    ],
)
def test_what_cannot_be_compiled_is_said_in_one_line(
    fails_in_one_line: Any, experiment: pathlib.Path, arguments: tuple[str, ...], message: str
) -> None:
    assert message in fails_in_one_line("looped_jax.compile", f"--config={experiment}", *arguments)


def test_a_missing_or_wrong_compiler_is_named_with_the_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tpu.importlib.metadata, "version", lambda _: "0.0.1")
    with pytest.raises(tpu.UserError, match=r"libtpu 0\.0\.1 is not what jax .* pip install"):
        tpu.describe("v5e:2x2")
    monkeypatch.setattr(tpu.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(tpu.UserError, match=r"not installed; pip install 'jax\[tpu\]=="):
        tpu.describe("v5e:2x2")
