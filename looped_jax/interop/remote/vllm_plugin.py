"""Makes vLLM know the models that `--layout=shared` writes: the entry point `vllm.general_plugins`
of this package, so that it is enough to have it installed beside vLLM."""


def register() -> None:
    """Called by vLLM in each of its processes when it starts."""
    from transformers import AutoConfig
    from vllm import ModelRegistry

    from looped_jax.interop.remote.modeling_looped_llama import LoopedLlamaConfig

    AutoConfig.register(LoopedLlamaConfig.model_type, LoopedLlamaConfig, exist_ok=True)

    ModelRegistry.register_model(
        "LoopedLlamaForCausalLM", f"{__package__}.vllm_looped_llama:LoopedLlamaForCausalLM"
    )
