"""The paper's looping-inspired regulariser: an untied stack of L layers is drawn to a looped one
of k by making layers that are k apart similar.

For each group G of parameters (the query kernels, the first MLP matrices, …), with theta_n those of
layer n,

    R_G = 1 / (L - k)  sum over n = 0 … L - k - 1 of  cos(theta_n, theta_{n+k}),

and strength x (1 - mean of R_G over the groups) is added to the loss. (The paper prints + strength
x mean R_G, which would drive layers apart; its text and its measured similarities mean the
opposite.)
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from looped_jax.errors import UserError
from looped_jax.models.loop_plan import LoopPlan

Array = jax.Array
# Keeps the cosine, and its gradient, finite for parameters that are still zero (biases).
_TINY = 1e-12


def layer_groups(params: Any) -> dict[str, Array]:
    """Group -> its parameters in all layers of the plan in order, and in that of a segment's stacks
    where there are several, [layers, …].

    Groups are named as the parameters are, e.g. ``attention/query/kernel``.
    """
    groups: dict[str, list[Array]] = {}
    count = sum(name.startswith("segment_") for name in params)
    for index in range(count):
        segment = params[f"segment_{index}"]
        more = sorted(name for name in segment if name.startswith("more_layers"))
        for stack in ("layers", *more):
            for path, stacked in jax.tree_util.tree_leaves_with_path(segment[stack]["layer"]):
                name = jax.tree_util.keystr(path, simple=True, separator="/")
                groups.setdefault(name, []).append(stacked)
    return {
        name: jnp.concatenate(parts) if len(parts) > 1 else parts[0]
        for name, parts in groups.items()
    }


def similarity_at(distance: int, parameters: Array) -> Array:
    """R_G for parameters [L, …] and k = ``distance``; float32."""
    flat_LN = parameters.reshape(parameters.shape[0], -1).astype(jnp.float32)
    products = jnp.sum(flat_LN[:-distance] * flat_LN[distance:], axis=1)
    norms = jnp.sqrt(jnp.sum(flat_LN**2, axis=1) + _TINY)
    return jnp.mean(products / (norms[:-distance] * norms[distance:]))


@dataclasses.dataclass(frozen=True)
class CosineRegularizer:
    """Draws layers that are ``block`` apart together, with a ``strength`` (the paper's lambda)."""

    block: int
    strength: float

    @classmethod
    def for_plan(cls, plan: LoopPlan, block: int, strength: float) -> "CosineRegularizer | None":
        """None for block 0. UserError if the plan is looped or has no two blocks."""
        if not block:
            return None
        if any(segment.loops > 1 for segment in plan.segments):
            raise UserError(
                f"config.regularizer.block={block}: plan {plan} is looped already; the regulariser "
                f"is for untied layers, e.g. config.model.plan={plan.effective_depth}x1"
            )
        plan.equal_blocks(block, "regularizer.block")
        return cls(block, strength)

    def __call__(self, params: Any) -> tuple[Array, dict[str, Array]]:
        """strength x (1 - mean R_G), and R_G by group."""
        similarity = {
            name: similarity_at(self.block, group) for name, group in layer_groups(params).items()
        }
        mean = jnp.mean(jnp.stack(list(similarity.values())))
        return self.strength * (1.0 - mean), similarity
