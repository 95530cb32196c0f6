"""Layers as Llama has them, and Qwen3, which is Llama with QK norm: to and from the tensors of
transformers' LlamaForCausalLM and Qwen3ForCausalLM (names and shapes read off these classes,
transformers 5.24).

The same mathematics under other names: queries and keys need no permutation, as both rotate
halves. What models/transformer.py does to embeddings for itself, times sqrt(D), is in the table
here; where the output is tied to it, the last norm's scale takes it back:
(x w / sqrt(D)) (sqrt(D) E)^T.

An MLP without a gate is one whose other factor is 1 for every input: matrix 0, bias 1.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from looped_jax.errors import UserError
from looped_jax.interop.source import Source
from looped_jax.interop.weights import (
    Layer,
    Tensors,
    embedded,
    layers,
    named,
    ours,
    projected,
    refuse_all_but,
    shape_of_theirs,
)
from looped_jax.models.config import ModelConfig

ATTENTION = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "o_proj"}
MLP = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}
NORMS = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
LAYER = {
    **{f"{a}/scale": f"{b}.weight" for a, b in NORMS.items()},
    "attention/query_norm/scale": "self_attn.q_norm.weight",
    "attention/key_norm/scale": "self_attn.k_norm.weight",
}
for _leaf, _name in (("kernel", "weight"), ("bias", "bias")):
    LAYER |= {f"attention/{a}/{_leaf}": f"self_attn.{b}.{_name}" for a, b in ATTENTION.items()}
    LAYER |= {f"mlp/{a}/{_leaf}": f"mlp.{b}.{_name}" for a, b in MLP.items()}
# Their names of what is applied to the MLP's inside.
ACTIVATION = {"swiglu": "silu", "gelu": "gelu_pytorch_tanh", "relu": "relu"}
PLAIN = {"layer": ("pre_norm",), "attention_gate": (False,), "norms": ("pre",)}


def check(config: ModelConfig, layout: str = "unrolled") -> None:
    """UserError for what neither class has."""
    wanted = {**PLAIN, "norm": ("rmsnorm",), "positions": ("rope",)}
    refuse_all_but(layout, config, wanted, {"per_loop": ("lora",)})
    if config.qk_norm:  # Qwen3's MLP has no bias, so none that stands for a gate either.
        refuse_all_but(f"{layout} with qk_norm", config, {"bias": (False,), "mlp": ("swiglu",)})


def describe(config: ModelConfig) -> dict[str, Any]:
    """The fields of its config.json that say what the model is."""
    kind = ("qwen3", "Qwen3ForCausalLM") if config.qk_norm else ("llama", "LlamaForCausalLM")
    bias = config.bias or config.mlp != "swiglu"
    return {
        "model_type": kind[0],
        "architectures": [kind[1]],
        "hidden_size": config.d_model,
        "intermediate_size": config.d_ff,
        "num_hidden_layers": config.plan.effective_depth,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": ACTIVATION[config.mlp],
        "rms_norm_eps": config.norm_eps,
        "attention_bias": config.bias,
        **({} if config.qk_norm else {"mlp_bias": bias}),
        **rotary(config),
    }


def rotary(config: ModelConfig) -> dict[str, Any]:
    """RoPE's base, in the form of transformers 5 and in the one that mlx-lm's Llama reads, which
    takes 10,000 where it is missing."""
    parameters = {"rope_theta": config.rope_theta, "rope_type": "default"}
    return {"rope_parameters": parameters, "rope_theta": config.rope_theta}


def tensors(config: ModelConfig, params: Any, distinct: bool = False) -> Tensors:
    """All tensors, by name; ``distinct``: of the layers of one loop of each segment only."""
    found: Tensors = {}
    for number, layer in enumerate(layers(config, params, distinct)):
        if config.mlp != "swiglu":
            layer = _with_gate(layer, config)
        found |= named(layer, LAYER, f"model.layers.{number}.")
    found["model.embed_tokens.weight"] = embedded(config, params)
    scale = np.asarray(params["final_norm"]["scale"])
    if config.tied_output:
        scale = scale / np.float32(config.d_model**0.5)
    else:
        found["lm_head.weight"] = projected(config, params)
    found["model.norm.weight"] = scale
    return found


def _with_gate(layer: Layer, config: ModelConfig) -> Layer:
    """An MLP act(up x) as act(gate x) (0 x + 1)."""
    layer, width = dict(layer), config.d_ff
    layer["mlp/gate/kernel"] = layer.pop("mlp/up/kernel")
    layer["mlp/gate/bias"] = layer.pop("mlp/up/bias", np.zeros(width, np.float32))
    layer["mlp/up/kernel"] = np.zeros_like(layer["mlp/gate/kernel"])
    layer["mlp/up/bias"] = np.ones(width, np.float32)
    layer.setdefault("mlp/down/bias", np.zeros(config.d_model, np.float32))
    return layer


def model_fields(source: Source) -> dict[str, Any]:
    """The keys of config.model that make the same layers; UserError for what there is none for."""
    said = source.description
    _refuse_unknown(source)
    heads, width = source.said("num_attention_heads"), source.said("hidden_size")
    act = said.get("hidden_act", "silu")
    kinds = {name: mlp for mlp, name in ACTIVATION.items()}
    if act not in kinds or (act != "silu" and not _is_gateless(source)):
        raise UserError(f"{source.path}: an MLP with a gate and {act} is none of config.model.mlp")
    return {
        "d_model": width,
        "d_ff": source.said("intermediate_size"),
        "num_heads": heads,
        "num_kv_heads": said.get("num_key_value_heads") or heads,
        "head_size": said.get("head_dim") or width // heads,
        "mlp": kinds[act],
        "bias": any(name.endswith("q_proj.bias") for name in source.names),
        "norm": "rmsnorm",
        "norm_eps": source.said("rms_norm_eps"),
        "qk_norm": said["model_type"] == "qwen3",
        "positions": "rope",
        "rope_theta": float(_rope(said).get("rope_theta", 10000.0)),
        "tied_output": bool(said.get("tie_word_embeddings", False)),
    }


def _rope(said: Mapping[str, Any]) -> dict[str, Any]:
    given = said.get("rope_parameters") or said.get("rope_scaling") or {}
    top = {k: said[k] for k in ("rope_theta",) if said.get(k) is not None}
    return {**top, **given}


def _refuse_unknown(source: Source) -> None:
    """UserError for options of these architectures that there are no keys for."""
    said, rope = source.description, _rope(source.description)
    kind = rope.get("rope_type", rope.get("type", "default"))
    parts = [said.get("partial_rotary_factor"), rope.get("partial_rotary_factor")]
    problems = {
        "quantization_config (take the model that is not quantised)": said.get(
            "quantization_config"
        ),
        f"rope_type={kind!r}": kind != "default",
        "partial_rotary_factor": any(part not in (None, 1.0) for part in parts),
        "sliding windows": said.get("sliding_window") and said.get("use_sliding_window", True),
        "mlp_bias without attention_bias": said.get("mlp_bias")
        and not said.get("attention_bias")
        and said.get("hidden_act", "silu") == "silu",
    }
    for problem, found in problems.items():
        if found:
            raise UserError(f"{source.path}: config.model has nothing for {problem}")


def _is_gateless(source: Source) -> bool:
    """Whether its first layer's MLP is one of `_with_gate`."""
    names = [f"model.layers.0.mlp.up_proj.{leaf}" for leaf in ("weight", "bias")]
    if any(name not in source.names for name in names):
        return False
    weight, bias = (source.read(name) for name in names)
    return not weight.any() and bool((bias == 1).all())


def _refuse_gate(source: Source, number: int, shape: tuple[int, ...]) -> None:
    """UserError if what stands for a gate in this layer, [F, D], is not that of `_with_gate`."""
    prefix = f"model.layers.{number}.mlp.up_proj"
    found = source.tensor(f"{prefix}.weight", *shape), source.tensor(f"{prefix}.bias", shape[0])
    if found[0].any() or (found[1] != 1).any():
        raise UserError(
            f"{source.path}: {prefix} has to be 0 with a bias of 1, as looped_jax.export writes "
            "it: an MLP with a gate and this hidden_act is none of config.model.mlp"
        )


def read_layer(
    source: Source,
    number: int,
    shapes: Mapping[str, tuple[int, ...]],
    table: Mapping[str, str] = LAYER,
) -> Layer:
    """One of its layers, arrays of these shapes by path; biases that it lacks (Qwen2 has three of
    seven) are 0. UserError as Source.tensor, and for a gate where ``shapes`` has none."""
    gateless = "mlp/gate/kernel" not in shapes
    if gateless:
        _refuse_gate(source, number, shape_of_theirs("mlp/up/kernel", shapes["mlp/up/kernel"]))
    layer = {}
    for path, shape in shapes.items():
        theirs_path = path.replace("mlp/up/", "mlp/gate/") if gateless else path
        name = f"model.layers.{number}.{table[theirs_path]}"
        if path.endswith("/bias") and name not in source.names:
            layer[path] = np.zeros(shape, np.float32)
        else:
            layer[path] = ours(path, source.tensor(name, *shape_of_theirs(path, shape)), shape)
    return layer


def read_ends(source: Source, config: ModelConfig) -> dict[str, Any]:
    """Embedding, last norm and output projection; ids that only pad are 0."""
    width, root = config.d_model, np.float32(config.d_model**0.5)
    used = source.said("vocab_size")

    def padded(table_VD: np.ndarray) -> np.ndarray:
        return np.pad(table_VD, ((0, config.vocab_size - used), (0, 0)))

    table_VD = padded(source.tensor("model.embed_tokens.weight", used, width))
    scale = source.tensor("model.norm.weight", width)
    ends: dict[str, Any] = {"embed": {"embedding": table_VD / root}}
    if config.tied_output:
        return {**ends, "final_norm": {"scale": scale * root}}
    head_VD = padded(source.tensor("lm_head.weight", used, width))
    return {**ends, "final_norm": {"scale": scale}, "output": {"kernel": head_VD.T}}
