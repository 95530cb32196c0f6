"""HRM-Text (arXiv 2605.20613) as HrmTextForCausalLM of transformers 5.24 and vLLM have it: loops
at two speeds, config.loop.nest=two_stacks (models/loops/nest.py says which is which). Names read
off that class; both of its stacks are stored once."""

from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from looped_jax.errors import UserError
from looped_jax.interop import llama
from looped_jax.interop.weights import Tensors, named, projected, refuse_all_but
from looped_jax.models.config import ModelConfig

LAYER = {**llama.LAYER, "attention/out_gate/kernel": "self_attn.gate_proj.weight"}
STACKS = {"layers": "L_module", "more_layers_0": "H_module"}


def check(config: ModelConfig) -> None:
    """UserError for what the class does not have, or has and the model has not."""
    wanted = {
        "layer": ("pre_norm",),
        "norms": ("pre",),
        "norm": ("rmsnorm_unscaled",),
        "attention_gate": (True,),
        "positions": ("rope",),
        "mlp": ("swiglu",),
        "bias": (False,),
        "qk_norm": (False,),
        "num_kv_heads": (config.num_heads,),
    }
    refuse_all_but("hrm_text", config, wanted, {"nest": ("two_stacks",)})
    if ("nest", "two_stacks") not in config.loop:
        raise UserError("--layout=hrm_text cannot express config.loop.nest='none'")
    if len(config.plan.segments) != 1 or not config.plan.looped:
        raise UserError(f"--layout=hrm_text has one segment, looped; plan {config.plan} is another")


def describe(config: ModelConfig) -> dict[str, Any]:
    """The fields of its config.json that say what the model is. Which low updates have gradients is
    of no account when it is served, but says how it was trained."""
    (segment,) = config.plan.segments
    described = llama.describe(config)
    del described["mlp_bias"], described["attention_bias"], described["num_key_value_heads"]
    kept = config.low_gradient_loops
    return {
        **described,
        "model_type": "hrm_text",
        "architectures": ["HrmTextForCausalLM"],
        # Of cache slots, as the class itself writes it: a slot of each layer in each loop.
        "num_hidden_layers": config.plan.effective_depth,
        "num_layers_per_stack": segment.layers,
        "H_cycles": segment.loops // (config.low_loops + 1),
        "L_cycles": config.low_loops,
        **({"L_bp_cycles": list(kept)} if kept else {}),
        "embedding_scale": float(config.d_model**0.5),
        "prefix_lm": False,
    }


def tensors(config: ModelConfig, params: Any) -> Tensors:
    """All tensors, by name. The class multiplies embeddings itself."""
    segment, found = params["segment_0"], Tensors()
    for ours, theirs in STACKS.items():
        stack = flatten_dict(segment[ours]["layer"], sep="/")
        for number in range(config.plan.segments[0].layers):
            layer = {path: np.asarray(array[number]) for path, array in stack.items()}
            found |= named(layer, LAYER, f"model.{theirs}.layers.{number}.")
    table_VD = np.asarray(params["embed"]["embedding"])[: config.ids_in_use or None]
    return found | {
        "model.embed_tokens.weight": table_VD,
        "model.z_L_init": np.asarray(segment["nest"]["low"]),
        "lm_head.weight": projected(config, params),
    }
