"""The loop at work as a picture: what stands at each place after each loop."""

from collections.abc import Sequence

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch

from looped_jax.analysis.plots import as_text, png, subplots
from looped_jax.theory.verify import Verification

SETTLED, OPEN = "#a8dca4", "#f7fcf5"


def picture(found: Verification, after: Sequence[str]) -> bytes:
    """PNG of the trace, a row for each of ``after``. What its words are stands above it; a cell
    that is as the last loop leaves it is green where that says something."""
    rows, columns = len(found.trace), len(found.columns)
    widest = max(len(word) for row in (*found.trace, found.columns) for word in row)
    cell = max(0.62, 0.085 * widest)
    size = (max(6.2, 1.2 + cell * columns), 1.7 + 0.36 * rows)
    figure, axes = subplots(figsize=size, layout="constrained")
    settled = np.asarray(found.trace) == np.asarray(found.trace[-1])
    axes.imshow(
        settled & found.settles,
        cmap=ListedColormap([OPEN, SETTLED]),
        vmin=0,
        vmax=1,
        aspect="auto",
    )
    for (i, j), word in np.ndenumerate(np.asarray(found.trace)):
        axes.text(j, i, as_text(word), ha="center", va="center", fontsize=8)
    axes.set_xticks(range(columns), [as_text(name) for name in found.columns])
    axes.set_yticks(range(rows), [as_text(name) for name in after])
    axes.set_xlabel(found.places)
    figure.suptitle(as_text(found.name), fontsize=10)
    axes.set_title(as_text("\n".join(found.words)), fontsize=8, loc="left")
    if found.settles:
        patches = [
            Patch(fc=SETTLED, ec="grey", label="as the last loop leaves it"),
            Patch(fc=OPEN, ec="grey", label="not yet"),
        ]
        figure.legend(
            handles=patches, ncols=2, loc="outside lower center", frameon=False, fontsize=8
        )
    return png(figure)
