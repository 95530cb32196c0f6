"""How similar a model's blocks are: the heatmaps beside the paper's regulariser (section 4)."""

from typing import Any

import numpy as np

from looped_jax.errors import UserError
from looped_jax.training.regularizer import layer_groups


def block_cosines(params: Any, block: int) -> dict[str, np.ndarray]:
    """Group -> [N, N] with the cosine of blocks i and j of ``block`` layers: the mean over the
    layers in a block of cos(theta of that layer in i, theta of that layer in j).

    The diagonal is 1, or 0 where the parameters of a group are all zero. UserError if ``block``
    does not divide the number of layers.
    """
    return {
        name: _cosines(np.asarray(group), block) for name, group in layer_groups(params).items()
    }


def _cosines(parameters: np.ndarray, block: int) -> np.ndarray:
    layers = parameters.shape[0]
    if block < 1 or layers % block:
        raise UserError(f"blocks of {block} layers do not divide {layers} layers")
    flat_LN = parameters.reshape(layers, -1).astype(np.float64)
    norm_L1 = np.linalg.norm(flat_LN, axis=1, keepdims=True)
    unit_LN = np.divide(flat_LN, norm_L1, out=np.zeros_like(flat_LN), where=norm_L1 > 0)
    unit_NkP = unit_LN.reshape(layers // block, block, -1)
    cosine_NN: np.ndarray = np.einsum("ikp,jkp->ij", unit_NkP, unit_NkP) / block
    return cosine_NN
