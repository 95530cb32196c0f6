"""Kinds of loops: one file each, chosen by config.loop.OPTION = NAME; docs/loop_variants.md.

A new one is a file here, a line in VARIANTS, and its name among the choices of its option in
looped_jax/config/keys.py.
"""

from looped_jax.models.loops.base import LoopVariant
from looped_jax.models.loops.embedding import LoopEmbedding
from looped_jax.models.loops.injection_add import AddInput

# Option of config.loop -> name -> variant; `none` is the plain loop. They enter a loop in this
# order and leave it in the reverse order.
VARIANTS: dict[str, dict[str, type[LoopVariant]]] = {
    "injection": {"add": AddInput},
    "per_loop": {"embedding": LoopEmbedding},
}
