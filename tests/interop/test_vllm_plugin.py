"""The plugin for vLLM, with a stand-in for that package: what vLLM is told, and what is shared."""

import importlib.metadata
import inspect
import runpy
import sys
import types
from collections.abc import Iterator
from typing import Any

import pytest
import setuptools
from conftest import ROOT

NAME = "LoopedLlamaForCausalLM"
CLASS_FILE = "looped_jax.interop.remote.vllm_looped_llama"
CONFIG_FILE = "looped_jax.interop.remote.modeling_looped_llama"


def block() -> Any:
    """A layer with the parts that vLLM's Llama has."""
    attention = types.SimpleNamespace(qkv_proj=object(), o_proj=object(), attn=object())
    parts = {name: object() for name in ("input_layernorm", "post_attention_layernorm", "mlp")}
    return types.SimpleNamespace(self_attn=attention, **parts)


class Llama:
    """As vLLM makes one: layers of their own, as many as a token passes through."""

    def __init__(self, *, vllm_config: Any, prefix: str = ""):
        self.config = types.SimpleNamespace(stored_layers=vllm_config)
        self.model = types.SimpleNamespace(layers=[block() for _ in vllm_config])


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """What is registered with the stand-in."""
    found: dict[str, str] = {}
    vllm: Any = types.ModuleType("vllm")
    vllm.ModelRegistry = types.SimpleNamespace(register_model=found.__setitem__)
    module = "vllm.model_executor.models.llama"
    llama: Any = types.ModuleType(module)
    llama.LlamaForCausalLM = Llama
    transformers: Any = types.ModuleType("transformers")
    transformers.LlamaConfig = transformers.LlamaForCausalLM = object
    transformers.AutoConfig = types.SimpleNamespace(
        register=lambda kind, of, exist_ok: found.update({kind: of.__name__})
    )
    monkeypatch.setitem(sys.modules, "transformers", transformers)
    for name in ("vllm.model_executor", "vllm.model_executor.models"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    monkeypatch.setitem(sys.modules, module, llama)
    yield found
    for made in (CLASS_FILE, CONFIG_FILE):  # Their classes are of the stand-ins'.
        sys.modules.pop(made, None)


def entry_point(monkeypatch: pytest.MonkeyPatch) -> importlib.metadata.EntryPoint:
    """What setup.py says under the group that vLLM looks in."""
    said: dict[str, Any] = {}
    monkeypatch.setattr(setuptools, "setup", said.update)
    monkeypatch.chdir(ROOT)
    runpy.run_path(str(ROOT / "setup.py"))
    (line,) = said["entry_points"]["vllm.general_plugins"]
    name, value = line.split(" = ")
    return importlib.metadata.EntryPoint(name, value, "vllm.general_plugins")


def test_the_entry_point_registers_a_class_whose_loops_share_weights_and_not_caches(
    registered: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    entry_point(monkeypatch).load()()
    assert registered == {
        NAME: f"{CLASS_FILE}:{NAME}",
        "looped_llama": "LoopedLlamaConfig",  # What config.json's model_type is read as.
    }
    # vLLM opens it by this name, in another process.
    shared = importlib.metadata.EntryPoint(NAME, registered[NAME], "").load()
    # Without these names vLLM takes a class for one of an older interface, and gives it others.
    assert {"vllm_config", "prefix"} <= set(inspect.signature(shared.__init__).parameters)
    layers = shared(vllm_config=[0, 1, 2, 1, 2, 5], prefix="").model.layers
    for part in ("input_layernorm", "post_attention_layernorm", "mlp"):
        kept = [getattr(layer, part) for layer in layers]
        assert [kept.index(one) for one in kept] == [0, 1, 2, 1, 2, 5]
    for part in ("qkv_proj", "o_proj"):
        kept = [getattr(layer.self_attn, part) for layer in layers]
        assert [kept.index(one) for one in kept] == [0, 1, 2, 1, 2, 5]
    assert len({id(layer.self_attn.attn) for layer in layers}) == 6
