"""Parameters as the matrices that they are, layer by layer.

A segment's k layers are stacked in one array, and a projection to heads has an axis for the heads
and one for their size: that is how they are stored. What is done to a layer's matrix (by an
optimizer's statistics, say) must depend on neither, or 4x1 and 2x1,2x1 would train differently.
"""

from collections.abc import Sequence
from typing import Any


def layered(names: Sequence[str | None], sizes: Sequence[Any], merge: Any) -> tuple[Any, ...]:
    """What belongs to each axis of a parameter, taken together by [layers, in, out], or [layers, n]
    for a vector: `head_dim` is one with the heads before it, if there are any.

    Args:
      names: logical axes, e.g. (layers, embed, heads, head_dim). What each loop has for itself has
        `loops` in front, as good as more layers.
      sizes: what belongs to them, e.g. sizes.
      merge: makes one of two, e.g. a product.
    Returns the first entry None where the parameter is no layer's.
    """
    pairs = list(zip(names, sizes, strict=True))
    found: list[Any] = [None]
    while pairs and pairs[0][0] in ("loops", "layers"):
        _, size = pairs.pop(0)
        found = [size if found[0] is None else merge(found[0], size)]
    for name, size in pairs:
        if name == "head_dim" and len(found) > 1:
            found[-1] = merge(found[-1], size)
        else:
            found.append(size)
    return tuple(found)


def layered_shape(names: Sequence[str | None], shape: Sequence[int]) -> tuple[int, ...]:
    """[layers, in, out] or [layers, n]; one layer where the parameter is no layer's."""
    layers, *rest = layered(names, shape, lambda a, b: a * b)
    return (1 if layers is None else layers, *rest)
