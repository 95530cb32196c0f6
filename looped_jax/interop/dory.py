"""NVIDIA's Dory as DoryForCausalLM of transformers 5.24 and vLLM have it: layers of nGPT
(models/ngpt.py), a loop that is given its input by unit_add. Names read off that class; the k
layers are stored once, and none has a window."""

from typing import Any

import numpy as np

from looped_jax.errors import UserError
from looped_jax.interop import llama
from looped_jax.interop.weights import Tensors, embedded, layers, named, projected, refuse_all_but
from looped_jax.models.config import ModelConfig

LAYER = {
    **llama.LAYER,
    "attention/out_gate/kernel": "self_attn.gate_proj.weight",
    "attention/query_scale": "self_attn.sqk",
    "attention/gate_scale": "self_attn.s_gate",
    "mlp/up_scale": "mlp.suv_up",
    "mlp/gate_scale": "mlp.suv_gate",
    "attention_rate": "lambda_1",
    "mlp_rate": "lambda_2",
}
EPS = 1e-6  # The class has it as a constant.


def check(config: ModelConfig) -> None:
    """UserError for what the class does not have, or has and the model has not."""
    wanted = {"layer": ("ngpt",), "norm_eps": (EPS,), "positions": ("rope",), "bias": (False,)}
    refuse_all_but("dory", config, wanted, {"injection": ("unit_add",)})
    if ("injection", "unit_add") not in config.loop:
        raise UserError("--layout=dory cannot express config.loop.injection='none'")
    if len(config.plan.looped) != 1:
        raise UserError(f"--layout=dory has one looped segment; plan {config.plan} has others")


def describe(config: ModelConfig) -> dict[str, Any]:
    """The fields of its config.json that say what the model is. Layers are counted as released
    files count them, attention and MLP apart."""
    (looped,) = config.plan.looped
    counts = [segment.layers for segment in config.plan.segments]
    parts = (sum(counts[:looped]), counts[looped], sum(counts[looped + 1 :]))
    described = llama.describe(config)
    del described["rms_norm_eps"], described["rope_theta"]
    return {
        **described,
        "model_type": "dory",
        "architectures": ["DoryForCausalLM"],
        "num_hidden_layers": 2 * sum(parts),
        "n_input_layers": 2 * parts[0],
        "n_recurrent_layers": 2 * parts[1],
        "n_output_layers": 2 * parts[2],
        "n_recurrent_loops": config.plan.segments[looped].loops,
        "layer_types": ["full_attention", "mlp"] * sum(parts),
        "rope_parameters": {"full_attention": described["rope_parameters"]},
        # What learned scales are kept as where they are 1: here D^-1/2 (models/ngpt.py).
        "initializer_range": float(config.d_model**-0.5),
        "attention_bias": False,
        "mlp_bias": False,
    }


def tensors(config: ModelConfig, params: Any) -> Tensors:
    """All tensors, by name. A tied output is stored for itself: the class scales each token's
    logit, and has no sqrt(D)."""
    found: Tensors = {}
    for number, layer in enumerate(layers(config, params, distinct=True)):
        found |= named(layer, LAYER, f"model.layers.{number}.")
    return found | {
        "model.embed_tokens.weight": embedded(config, params),
        "lm_head.weight": projected(config, params),
        "lm_head.logit_scale": np.asarray(params["logit_scale"])[: config.ids_in_use or None],
    }
