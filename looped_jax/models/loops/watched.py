"""What is watched of every loop (docs/train.md), reduced over tokens where the loop ends: of h_t, a
token's stream at the end of loop t, and h_{t-1}, its stream when the loop began (with loops at two
speeds the state that the loop is to update, LoopVariant.updated),

state_norm             ||h_t||
relative_update        ||h_t - h_{t-1}|| / ||h_t||, what an exit by `state` asks (exits.py)
cosine_to_before       h_t . h_{t-1} / (||h_t|| ||h_{t-1}||)
cosine_between_tokens  the cosine of h_t of two tokens of one row; where it nears 1 all tokens have
                       become one (Geiping et al. 2025, arXiv 2502.05171, of a run that failed)

norms over D, in float32. The cosines of all pairs of n tokens with unit vectors u_i come from their
sum, in O(n D): ||u_1 + … + u_n||^2 = n + sum_{i != j} u_i . u_j.
"""

import jax
import jax.numpy as jnp

from looped_jax.models.layers import Array

OF_TOKENS = ("state_norm", "relative_update", "cosine_to_before")
OF_PAIRS = ("cosine_between_tokens",)
# Below it a norm is none: the cosine with such a stream is 0. The product of two is a float32.
_TINY = 1e-18


def counts(real_BT: Array) -> tuple[Array, Array]:
    """Tokens, and ordered pairs of different tokens of a row, float32 [B], of a mask [B, T]."""
    tokens_B = jnp.sum(real_BT.astype(jnp.float32), axis=1)
    return tokens_B, tokens_B * (tokens_B - 1.0)


def watched(before_BTD: Array, x_BTD: Array, real_BT: Array) -> dict[str, Array]:
    """Sums over a row's real tokens (a mask), or its pairs of them, float32 [B] each."""
    before_BTD, x_BTD = before_BTD.astype(jnp.float32), x_BTD.astype(jnp.float32)
    norm_BT, before_BT, update_BT = (
        jnp.linalg.norm(of_BTD, axis=-1) for of_BTD in (x_BTD, before_BTD, x_BTD - before_BTD)
    )
    safe_BT = jnp.maximum(norm_BT, _TINY)
    along_BT = jnp.sum(x_BTD * before_BTD, axis=-1) / safe_BT / jnp.maximum(before_BT, _TINY)
    of_tokens = (norm_BT, update_BT / safe_BT, along_BT)
    sums = {
        name: jnp.sum(real_BT * value_BT, axis=1)
        for name, value_BT in zip(OF_TOKENS, of_tokens, strict=True)
    }
    sum_BD = jnp.einsum("bt,btd->bd", real_BT / safe_BT, x_BTD, precision=jax.lax.Precision.HIGHEST)
    # A stream of zeros has no unit vector: it is no token of the identity above.
    tokens_B = jnp.sum(real_BT * (norm_BT > 0), axis=1)
    return {**sums, OF_PAIRS[0]: jnp.sum(sum_BD**2, axis=1) - tokens_B}
