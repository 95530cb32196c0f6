"""How similar a model's blocks are: the heatmaps beside the paper's regulariser (section 4)."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from looped_jax.analysis import plots
from looped_jax.analysis.curve_figures import file_name
from looped_jax.analysis.document import Figure, Part, Text
from looped_jax.analysis.records import Record
from looped_jax.errors import RunError, UserError
from looped_jax.training.regularizer import layer_groups
from looped_jax.training.run import open_run


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


def similarity(records: Sequence[Record]) -> list[Part]:
    """Heatmaps of untied models; blocks are the regulariser's, or single layers."""
    parts: list[Part] = []
    for record in records:
        if record.loops > 1 or record.plan.distinct_layers < 2:
            continue
        block = record.config.regularizer.block or record.config.stacking.block or 1
        plan = str(record.plan)
        title = record.name if record.name == plan else f"{record.name}: {plan}"
        try:
            params = open_run(str(record.workdir)).parameters()
            cosines = block_cosines(params, block)
        except (UserError, RunError) as error:
            parts.append(Text((f"{title}: no heatmap ({error})",), "warning"))
            continue
        # Norms' scales all begin at one and stay alike: what is drawn is the matrices.
        matrices = {name: c for name, c in cosines.items() if name.endswith("kernel")}
        layers = "layers" if block == 1 else f"blocks of {block} layers"
        note = f"Cosine between the parameters of {layers}, by group; step {record.checkpoint}."
        picture = plots.heatmaps(matrices, f"{layers}, from 0")
        parts.append(Figure(file_name("similarity", record.name), title, picture, note))
    return parts
