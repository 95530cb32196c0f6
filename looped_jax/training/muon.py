"""Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon): the momentum of each matrix, made
orthogonal by Newton-Schulz steps. The algorithm is optax's; here is what it is applied to.

It is for hidden matrices: every `kernel` but the output projection. A layer's is one by itself,
[in, out], with heads and their size as one axis (models/matrices.py), so that it does not matter
how layers are stored. Everything else is AdamW's: embeddings, the output projection, norms, biases,
vectors, and what is no `kernel`.
"""

import math
from typing import Any

import jax
import optax
from ml_collections import ConfigDict

from looped_jax.models.matrices import layered
from looped_jax.training.parameter_groups import map_parameters

# Root mean square of an update's entries, about what AdamW's is.
RMS = 0.2


def matrix_axes(path: str, names: Any) -> optax.contrib.MuonDimensionNumbers | None:
    """Which axes of a parameter are Muon's in and out, any others being matrices apart; None for
    one that is AdamW's."""
    names = tuple(names)
    _, *parts = layered(names, [(axis,) for axis in range(len(names))], lambda a, b: a + b)
    if path.split("/")[-1] != "kernel" or len(parts) != 2 or "vocab" in names:
        return None
    return optax.contrib.MuonDimensionNumbers(*parts)


def muon(optimizer: ConfigDict, axes: Any) -> optax.GradientTransformation:
    """Updates without learning rate and weight decay, for parameters with these logical axes.

    Nesterov momentum, then Newton-Schulz in optax's five steps, then RMS * sqrt(max(in, out)),
    which gives the entries of an orthogonal matrix a root mean square of RMS whatever its shape:
    AdamW's learning rates and weight decay serve as they are (Liu et al. 2025, arXiv 2502.16982,
    section 2.2; `consistent_rms` of optax.contrib.muon).
    """
    numbers = map_parameters(lambda *of: matrix_axes(*of) or optax.MaskedNode(), axes)
    labels = map_parameters(lambda *of: "muon" if matrix_axes(*of) else "adamw", axes)

    def scaled(update: jax.Array, of: optax.contrib.MuonDimensionNumbers) -> jax.Array:
        sizes = (math.prod(update.shape[axis] for axis in part) for part in of)
        return RMS * math.sqrt(max(sizes)) * update

    of_matrices = optax.chain(
        optax.contrib.scale_by_muon(
            beta=optimizer.muon_momentum, nesterov=True, weight_dimension_numbers=numbers
        ),
        optax.stateless(lambda updates, _: jax.tree.map(scaled, updates, numbers)),
    )
    of_others = optax.scale_by_adam(b1=optimizer.b1, b2=optimizer.b2, eps=optimizer.eps)
    return optax.partition({"muon": of_matrices, "adamw": of_others}, labels)
