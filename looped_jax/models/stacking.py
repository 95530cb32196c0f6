"""Gradual stacking, MIDAS: a stack grows by a copy of its middle block (arXiv 2409.19044)."""

import numpy as np


def duplicated_middle(layers: int, block: int) -> np.ndarray:
    """Which old layer each layer of the grown stack is a copy of: [layers + block] indices.

    The stack is N = layers / block blocks B_1 … B_N; the grown one is B_1 … B_m, B_m … B_N with
    m = ceil(N / 2).
    """
    if block < 1 or layers % block:
        raise ValueError(f"blocks of {block} do not divide {layers} layers")
    middle = (layers // block + 1) // 2
    old = np.arange(layers)
    return np.concatenate([old[: middle * block], old[(middle - 1) * block :]])
