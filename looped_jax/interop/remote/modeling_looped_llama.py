"""Llama whose layers pass several times, for transformers: copied into the folders that
`python -m looped_jax.export --layout=shared` writes, and loaded from there with trust_remote_code.

config.stored_layers says for each layer that a token passes through which layer's weights it has:
of [0, 1, 0, 1] layers 2 and 3 are layers 0 and 1 again. Each has its own place in the cache, as in
any Llama.
"""

from transformers import LlamaConfig, LlamaForCausalLM


class LoopedLlamaConfig(LlamaConfig):
    """That of a Llama, with config.stored_layers; of a type that is opened by this class only."""

    model_type = "looped_llama"


class LoopedLlamaForCausalLM(LlamaForCausalLM):
    """A Llama that ties layers."""

    config_class = LoopedLlamaConfig

    def __init__(self, config: LoopedLlamaConfig):
        again = {i: first for i, first in enumerate(config.stored_layers) if i != first}
        # Saving looks at this, as patterns; loading at the names below, which hold where the
        # output is not tied to the embedding, too.
        self._tied_weights_keys = {
            "lm_head.weight": "model.embed_tokens.weight",
            **{rf"model\.layers\.{i}\.": f"model.layers.{first}." for i, first in again.items()},
        }
        super().__init__(config)

    def get_expanded_tied_weights_keys(self, all_submodels: bool = False) -> dict[str, str]:
        """Name of a weight -> the name of the one that it is, for transformers' loading, saving and
        tying."""
        ties = super().get_expanded_tied_weights_keys(all_submodels=False)
        for number, stored in enumerate(self.config.stored_layers):
            if number != stored:
                for name, _ in self.model.layers[number].named_parameters():
                    ties[f"model.layers.{number}.{name}"] = f"model.layers.{stored}.{name}"
        return ties
