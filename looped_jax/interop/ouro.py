"""Ouro (arXiv 2510.25741): to and from the tensors of OuroForCausalLM, the remote code of
ByteDance/Ouro-1.4B; docs/export.md says which clients have it.

It is Llama with a norm also on what a block adds (config.loop.norms=branch), the last norm after
every loop (last_norm=every_loop) and a gate (gate=linear); the k layers are stored once. Where the
model has no gate it never exits: its bias is -30.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from looped_jax.errors import UserError
from looped_jax.interop import llama
from looped_jax.interop.source import Source
from looped_jax.interop.weights import (
    Layer,
    Tensors,
    embedded,
    layers,
    named,
    projected,
    refuse_all_but,
)
from looped_jax.models.config import ModelConfig
from looped_jax.models.transformer import has_final_norm

LAYER = {
    **llama.LAYER,
    "attention_out_norm/scale": "input_layernorm_2.weight",
    "mlp_out_norm/scale": "post_attention_layernorm_2.weight",
}
NEVER = -30.0  # sigmoid is 1e-13.


def check(config: ModelConfig) -> None:
    """UserError for what the class does not have, or has and the model has not."""
    wanted = {
        **llama.PLAIN,
        "norms": ("branch",),
        "norm": ("rmsnorm",),
        "positions": ("rope",),
        "mlp": ("swiglu",),
        "bias": (False,),
        "qk_norm": (False,),
    }
    refuse_all_but("ouro", config, wanted, {"last_norm": ("every_loop",), "gate": ("linear",)})
    if ("last_norm", "every_loop") not in config.loop:
        raise UserError("--layout=ouro cannot express config.loop.last_norm='none'")
    if len(config.plan.segments) != 1 or not config.plan.looped:
        raise UserError(f"--layout=ouro has one segment, looped; plan {config.plan} is another")


def describe(config: ModelConfig) -> dict[str, Any]:
    """The fields of its config.json that say what the model is."""
    (segment,) = config.plan.segments
    described = llama.describe(config)
    del described["mlp_bias"], described["attention_bias"]
    return {
        **described,
        "model_type": "ouro",
        "architectures": ["OuroForCausalLM"],
        "num_hidden_layers": segment.layers,
        "layer_types": ["full_attention"] * segment.layers,
        "use_sliding_window": False,
        "total_ut_steps": segment.loops,
        "early_exit_threshold": 1.0,
    }


def tensors(config: ModelConfig, params: Any) -> Tensors:
    """All tensors, by name. The last norm goes into the loop, too: it cannot take back what is in
    the table for a tied output, which is therefore stored for itself."""
    found: Tensors = {}
    for number, layer in enumerate(layers(config, params, distinct=True)):
        found |= named(layer, LAYER, f"model.layers.{number}.")
    segment = params["segment_0"]
    gate = segment.get("gate", {"weight": np.zeros(config.d_model, np.float32), "bias": NEVER})
    return found | {
        "model.embed_tokens.weight": embedded(config, params),
        "model.norm.weight": np.asarray(segment["last_norm"]["norm"]["scale"]),
        "model.early_exit_gate.weight": np.asarray(gate["weight"], np.float32)[None],
        "model.early_exit_gate.bias": np.asarray(gate["bias"], np.float32).reshape(1),
        "lm_head.weight": projected(config, params),
    }


def model_fields(source: Source) -> dict[str, Any]:
    """The keys of config.model that make the same layers."""
    return {**llama.model_fields(source), "tied_output": False}


def loop_fields(source: Source) -> dict[str, Any]:
    """The keys of config.loop, likewise."""
    return {"norms": "branch", "last_norm": "every_loop", "gate": "linear"}


def plan(source: Source) -> str:
    """Its own plan."""
    return f"{source.said('num_hidden_layers')}x{source.said('total_ut_steps')}"


def read_layer(source: Source, number: int, shapes: Mapping[str, tuple[int, ...]]) -> Layer:
    """One of its layers, arrays of these shapes by path."""
    return llama.read_layer(source, number, shapes, LAYER)


def read_ends(source: Source, config: ModelConfig) -> dict[str, Any]:
    """Embedding, norm and gate of each looped segment, output projection. Where layers follow the
    last loop (or there is none), its norm is also the one behind them, as it is the model's last
    one. Without a loop there is nothing to leave: the gate is not asked for."""
    ends = llama.read_ends(source, config)
    norm = ends["final_norm"]
    if not has_final_norm(config):
        del ends["final_norm"]
    if not config.plan.looped:
        return ends
    gate = {
        "weight": source.tensor("model.early_exit_gate.weight", 1, config.d_model)[0],
        "bias": source.tensor("model.early_exit_gate.bias", 1)[0],
    }
    loop = {"last_norm": {"norm": norm}, "gate": gate}
    return ends | {f"segment_{index}": loop for index in config.plan.looped}
