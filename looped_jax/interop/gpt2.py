"""LayerNorm with learned positions and an MLP without a gate, which is GPT-2: the tensors of
transformers' GPT2LMHeadModel (names read off that class, transformers 5.24). Its matrices are
[in, out], those of queries, keys and values are one, and biases are 0 where the model has none."""

from typing import Any

import numpy as np

from looped_jax.interop import llama
from looped_jax.interop.weights import (
    Layer,
    Tensors,
    embedded,
    layers,
    projected,
    refuse_all_but,
    theirs,
)
from looped_jax.models.config import ModelConfig

NORMS = {"attention_norm": "ln_1", "mlp_norm": "ln_2"}
MATRICES = {"attention/output": "attn.c_proj", "mlp/up": "mlp.c_fc", "mlp/down": "mlp.c_proj"}
JOINED = ("attention/query", "attention/key", "attention/value")
ACTIVATION = {"gelu": "gelu_new", "relu": "relu"}  # gelu_new is the tanh form.


def check(config: ModelConfig) -> None:
    """UserError for what the class does not have."""
    wanted = {
        **llama.PLAIN,
        "norm": ("layernorm",),
        "positions": ("learned",),
        "mlp": tuple(ACTIVATION),
        "qk_norm": (False,),
        "num_kv_heads": (config.num_heads,),
        "head_dim": (config.d_model // config.num_heads,),
    }
    layout = "unrolled with learned positions"
    refuse_all_but(layout, config, wanted, {"per_loop": ("lora",)})


def describe(config: ModelConfig) -> dict[str, Any]:
    """The fields of its config.json that say what the model is."""
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "n_embd": config.d_model,
        "n_inner": config.d_ff,
        "n_layer": config.plan.effective_depth,
        "n_head": config.num_heads,
        "n_positions": config.max_length,
        "activation_function": ACTIVATION[config.mlp],
        "layer_norm_epsilon": config.norm_eps,
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
    }


def tensors(config: ModelConfig, params: Any) -> Tensors:
    """All tensors, by name. Positions are multiplied by sqrt(D) as tokens are."""
    found: Tensors = {}
    for number, layer in enumerate(layers(config, params)):
        prefix = f"transformer.h.{number}."
        for norm, name in NORMS.items():
            found[f"{prefix}{name}.weight"] = layer[f"{norm}/scale"]
            found[f"{prefix}{name}.bias"] = layer[f"{norm}/bias"]
        of = {path: _dense(layer, path) for path in (*JOINED, *MATRICES)}
        joined = tuple(np.concatenate([of[path][i] for path in JOINED], axis=-1) for i in (0, 1))
        named = {"attn.c_attn": joined, **{name: of[path] for path, name in MATRICES.items()}}
        for name, (matrix, bias) in named.items():
            found |= {f"{prefix}{name}.weight": matrix, f"{prefix}{name}.bias": bias}
    root = np.float32(config.d_model**0.5)
    found["transformer.wte.weight"] = embedded(config, params)
    found["transformer.wpe.weight"] = np.asarray(params["position_embedding"]) * root
    for leaf, name in (("scale", "weight"), ("bias", "bias")):
        scale = np.asarray(params["final_norm"][leaf])
        found[f"transformer.ln_f.{name}"] = scale / (root if config.tied_output else 1)
    if not config.tied_output:
        found["lm_head.weight"] = projected(config, params)
    return found


def _dense(layer: Layer, path: str) -> tuple[np.ndarray, np.ndarray]:
    """Matrix [in, out] and bias [out] of a projection."""
    kernel = np.ascontiguousarray(theirs(f"{path}/kernel", layer[f"{path}/kernel"]).T)
    bias = layer.get(f"{path}/bias", np.zeros(kernel.shape[1], kernel.dtype))
    return kernel, bias.reshape(-1)
