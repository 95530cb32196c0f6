"""LayerNorm with RoPE and an MLP without a gate, which is StarCoder2: the tensors of transformers'
Starcoder2ForCausalLM (names read off that class, transformers 5.24). Its biases are 0 where the
model has none."""

from typing import Any

import numpy as np

from looped_jax.interop import llama
from looped_jax.interop.weights import (
    Tensors,
    embedded,
    layers,
    named,
    projected,
    refuse_all_but,
)
from looped_jax.models.config import ModelConfig

LAYER = {path: name for path, name in llama.LAYER.items() if not path.startswith("mlp/")}
LAYER |= {f"{norm}/bias": LAYER[f"{norm}/scale"].replace("weight", "bias") for norm in llama.NORMS}
for _ours, _theirs in (("up", "c_fc"), ("down", "c_proj")):
    LAYER[f"mlp/{_ours}/kernel"] = f"mlp.{_theirs}.weight"
    LAYER[f"mlp/{_ours}/bias"] = f"mlp.{_theirs}.bias"


def check(config: ModelConfig) -> None:
    """UserError for what the class does not have."""
    wanted = {
        **llama.PLAIN,
        "norm": ("layernorm",),
        "positions": ("rope",),
        "mlp": ("gelu", "relu"),
        "qk_norm": (False,),
        # The class derives the width of heads.
        "head_dim": (config.d_model // config.num_heads,),
    }
    refuse_all_but("unrolled with layernorm", config, wanted, {"per_loop": ("lora",)})


def describe(config: ModelConfig) -> dict[str, Any]:
    """The fields of its config.json that say what the model is."""
    described = llama.describe(config)
    for absent in ("rms_norm_eps", "attention_bias", "mlp_bias", "head_dim"):
        del described[absent]
    return {
        **described,
        "model_type": "starcoder2",
        "architectures": ["Starcoder2ForCausalLM"],
        "norm_epsilon": config.norm_eps,
        "use_bias": True,
        "sliding_window": None,
        "attention_dropout": 0.0,
        "residual_dropout": 0.0,
        "embedding_dropout": 0.0,
    }


def tensors(config: ModelConfig, params: Any) -> Tensors:
    """All tensors, by name. Where the output is tied to the table, the last norm takes back its
    sqrt(D), as in interop/llama.py."""
    found: Tensors = {}
    for number, layer in enumerate(layers(config, params)):
        prefix = f"model.layers.{number}."
        found |= named(layer, LAYER, prefix)
        for path, array in layer.items():  # A bias is as long as its matrix is high.
            if path.endswith("/kernel"):
                name = prefix + LAYER[path.replace("/kernel", "/bias")]
                found.setdefault(name, np.zeros(found[prefix + LAYER[path]].shape[0], array.dtype))
    root = np.float32(config.d_model**0.5 if config.tied_output else 1.0)
    for leaf, name in (("scale", "weight"), ("bias", "bias")):
        found[f"model.norm.{name}"] = np.asarray(params["final_norm"][leaf]) / root
    found["model.embed_tokens.weight"] = embedded(config, params)
    if not config.tied_output:
        found["lm_head.weight"] = projected(config, params)
    return found
