"""How the next token is chosen from its logits."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from looped_jax.errors import UserError
from looped_jax.models.output import NEVER


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Greedy, or a draw from the tempered distribution cut to its likeliest tokens.

    temperature: 0 is greedy.
    top_k: only the k likeliest tokens; 0: all.
    top_p: only the likeliest tokens that together reach probability p (Holtzman et al. 2020);
      the likeliest is always in. 1: all. Cut by k first, then by p.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:  # nan is neither.
            raise UserError(f"temperature={self.temperature} must be a number from 0")
        if self.top_k < 0 or not 0 < self.top_p <= 1:
            raise UserError(
                f"top_k={self.top_k} must not be negative, and top_p={self.top_p} must be above 0 "
                "and at most 1"
            )


def likeliest(logits_BV: jax.Array) -> jax.Array:
    """token_B, int32 (or of any axes in front): the first of those with the largest logit."""
    return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)


def sample(logits_BV: jax.Array, key_B: jax.Array, sampling: Sampling) -> jax.Array:
    """token_B, int32: each row by a key of its own. ``sampling`` is static; the keys are not used
    when greedy. What has a logit of NEVER is never drawn, at any temperature."""
    if sampling.temperature == 0:
        return likeliest(logits_BV)
    never_BV = logits_BV <= NEVER
    # From the largest, or the quotients could be infinite.
    logits_BV = (logits_BV - jnp.max(logits_BV, axis=-1, keepdims=True)) / sampling.temperature
    logits_BV = jnp.where(never_BV, -jnp.inf, logits_BV)
    if sampling.top_k:
        count = min(sampling.top_k, logits_BV.shape[-1])
        least_B1 = jax.lax.top_k(logits_BV, count)[0][:, -1:]
        logits_BV = jnp.where(logits_BV < least_B1, -jnp.inf, logits_BV)
    if sampling.top_p < 1:
        sorted_BV = jnp.sort(logits_BV, axis=-1, descending=True)
        p_BV = jax.nn.softmax(sorted_BV)
        # A token is in if those before it do not reach p yet.
        before_BV = jnp.cumsum(p_BV, axis=-1) - p_BV
        least_B1 = jnp.min(
            jnp.where(before_BV < sampling.top_p, sorted_BV, jnp.inf), axis=-1, keepdims=True
        )
        logits_BV = jnp.where(logits_BV < least_B1, -jnp.inf, logits_BV)
    return jax.vmap(jax.random.categorical)(key_B, logits_BV).astype(jnp.int32)
