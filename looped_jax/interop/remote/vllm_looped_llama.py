"""Llama whose layers pass several times, for vLLM; see modeling_looped_llama.py."""

from typing import Any

from vllm.model_executor.models.llama import LlamaForCausalLM

# What of a layer has weights. Its attention has none and keeps a cache of its own.
SHARED = ("input_layernorm", "post_attention_layernorm", "mlp")


class LoopedLlamaForCausalLM(LlamaForCausalLM):
    """A Llama some of whose layers are others again."""

    # vLLM looks at these names to know a model of its present interface.
    def __init__(self, *, vllm_config: Any, prefix: str = ""):
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        layers = self.model.layers
        for number, stored in enumerate(self.config.stored_layers):
            if number != stored:
                for name in SHARED:
                    setattr(layers[number], name, getattr(layers[stored], name))
                for name in ("qkv_proj", "o_proj"):
                    own, other = layers[number].self_attn, layers[stored].self_attn
                    setattr(own, name, getattr(other, name))
