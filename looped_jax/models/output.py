"""The output projection: one function for the loss, evaluation, generation and scoring.

Its products accumulate in float32 and stay float32, also in a bfloat16 model, whose logits between
16 and 32 would otherwise be multiples of 1/8.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from looped_jax.models.config import ModelConfig
from looped_jax.models.execution import partitioned
from looped_jax.models.layers import Array

# The logit of an id that means nothing: finite, so that no difference of logits can be nan.
NEVER = -1e30


def vocabulary_logits(config: ModelConfig, x_BTD: Array, kernel_VD: Array) -> Array:
    """float32 logits of x [..., D] in the compute type; NEVER for ids that pad the vocabulary.

    ``kernel_VD`` may be float32, as it is stored: it is multiplied in the compute type.
    """
    logits_BTV = jax.lax.dot_general(
        x_BTD,
        kernel_VD.astype(config.dtype),
        (((x_BTD.ndim - 1,), (1,)), ((), ())),
        preferred_element_type=jnp.float32,
    )
    if not 0 < config.ids_in_use < config.vocab_size:
        return logits_BTV
    ids_BTV = jax.lax.broadcasted_iota(jnp.int32, logits_BTV.shape, logits_BTV.ndim - 1)
    return jnp.where(ids_BTV < config.ids_in_use, logits_BTV, NEVER)


class OutputKernel(nn.Module):
    """The parameters of an output projection of its own (config.tied_output = False)."""

    config: ModelConfig

    @nn.compact
    def __call__(self) -> Array:
        """kernel_DV, float32."""
        config = self.config
        init = partitioned(nn.initializers.lecun_normal(), "embed", "vocab")
        return self.param("kernel", init, (config.d_model, config.vocab_size))
