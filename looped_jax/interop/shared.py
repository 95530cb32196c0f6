"""Llama with its distinct layers stored once: for transformers by a class in the exported folder,
for vLLM by this package's plugin (interop/remote)."""

import pathlib
from typing import Any

from looped_jax.interop import llama
from looped_jax.interop.remote import __file__ as _remote
from looped_jax.interop.weights import Tensors, refuse_all_but
from looped_jax.models.config import ModelConfig
from looped_jax.models.loop_plan import LoopPlan

CODE = pathlib.Path(_remote).with_name("modeling_looped_llama.py")


def stored_layers(plan: LoopPlan) -> list[int]:
    """For each layer that a token passes through, the number of the first one with its weights."""
    found: list[int] = []
    for segment in plan.segments:
        first = len(found)
        found += [*range(first, first + segment.layers)] * segment.loops
    return found


def check(config: ModelConfig) -> None:
    """UserError for what the class does not have."""
    refuse_all_but("shared", config, {"qk_norm": (False,)})
    llama.check(config, "shared")


def describe(config: ModelConfig) -> dict[str, Any]:
    """The fields of its config.json that say what the model is."""
    return {
        **llama.describe(config),
        "architectures": ["LoopedLlamaForCausalLM"],
        # A type of its own: as `llama` it would open without the class, with layers made up.
        "model_type": "looped_llama",
        "auto_map": {
            "AutoConfig": f"{CODE.stem}.LoopedLlamaConfig",
            "AutoModelForCausalLM": f"{CODE.stem}.LoopedLlamaForCausalLM",
        },
        "stored_layers": stored_layers(config.plan),
    }


def tensors(config: ModelConfig, params: Any) -> Tensors:
    """All tensors, by name: a layer's under its first number."""
    found = llama.tensors(config, params, distinct=True)
    numbers = sorted(set(stored_layers(config.plan)))
    return {_renumbered(name, numbers): tensor for name, tensor in found.items()}


def _renumbered(name: str, numbers: list[int]) -> str:
    start, _, rest = name.partition("model.layers.")
    if not rest or start:
        return name
    number, _, leaf = rest.partition(".")
    return f"model.layers.{numbers[int(number)]}.{leaf}"
