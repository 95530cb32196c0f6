"""The pictures of looped_jax.explain, as PNG. L loops, T tokens, k layers, H heads."""

import matplotlib as mpl
import numpy as np

from looped_jax.analysis.plots import as_text, png, subplots
from looped_jax.inside.decoded import Decoded
from looped_jax.inside.lens import Lens

MOST_MAPS = 48  # Attention maps drawn one by one; beyond, heads are averaged.
MOST_NAMES = 64  # Tokens that are named beside a picture.


def lens(found: Lens, known_T: np.ndarray, tokens: list[str], unit: str) -> bytes:
    """log p of the right token and KL to the whole model, over loops (``unit``) and tokens."""
    height = 1.2 + 0.16 * len(tokens)
    figure, axes = subplots(1, 2, figsize=(8.0, height), sharey=True, layout="constrained")
    right_LT = np.where(known_T, found.target_log_p_LBT, np.nan)
    titles = ("log p of the right token", "KL to the whole, nats")
    both = (right_LT, np.asarray(found.kl_LBT))
    for axis, title, values_LT in zip(axes, titles, both, strict=True):
        image = axis.imshow(values_LT.T, aspect="auto", interpolation="nearest")
        figure.colorbar(image, ax=axis)
        axis.set_title(title, fontsize=9)
        axis.set_xlabel(unit)
        loops = len(values_LT)
        axis.set_xticks(range(loops), [str(n + 1) for n in range(loops)], fontsize=7)
    step = -(-len(tokens) // MOST_NAMES)
    named = [as_text(token) for token in tokens[::step]]
    axes[0].set_yticks(range(0, len(tokens), step), named, fontsize=6)
    return png(figure)


def states(found: Lens, unit: str) -> bytes:
    """Norms and changes of each token's state, and where the states lie."""
    states_LTD = found.states_LBTD
    tokens = states_LTD.shape[1]
    figure, axes = subplots(1, 3, figsize=(10.5, 3.4), layout="constrained")
    loops = np.arange(1, len(states_LTD) + 1)
    of_axes = (("norm", found.norm_LBT), ("relative update", found.update_LBT))
    for axis, (title, values_LT) in zip(axes, of_axes, strict=False):
        axis.plot(loops, values_LT, c="tab:blue", alpha=0.25, lw=0.8)
        axis.plot(loops, np.asarray(values_LT).mean(1), c="black", lw=2)
        axis.set_title(title, fontsize=9)
        axis.set_xlabel(unit)
        axis.xaxis.get_major_locator().set_params(integer=True)
    flat = states_LTD.reshape(-1, states_LTD.shape[-1])
    components = np.linalg.svd(flat - flat.mean(0), full_matrices=False)[2][:2]
    plane_LT2 = (states_LTD - flat.mean(0)) @ components.T
    for t, color in enumerate(mpl.colormaps["viridis"](np.linspace(0, 1, tokens))):
        axes[2].plot(plane_LT2[:, t, 0], plane_LT2[:, t, -1], c=color, lw=0.8)
        axes[2].plot(plane_LT2[-1, t, 0], plane_LT2[-1, t, -1], "o", c=color, ms=3)
    axes[2].set_title("two principal components", fontsize=9)
    return png(figure)


def attention(weights_LkHTT: np.ndarray) -> tuple[bytes, bool]:
    """A map for each head of each layer in each loop, and True; where these are too many, of the
    mean over heads, and False."""
    loops, layers, heads = weights_LkHTT.shape[:3]
    each = loops * layers * heads <= MOST_MAPS
    if not each:
        weights_LkHTT, heads = weights_LkHTT.mean(2, keepdims=True), 1
    size = (0.8 + 1.5 * layers * heads, 0.6 + 1.5 * loops)
    figure, axes = subplots(
        loops, layers * heads, figsize=size, squeeze=False, layout="constrained"
    )
    for (n, column), axis in np.ndenumerate(axes):
        layer, head = divmod(column, heads)
        weights_TT = weights_LkHTT[n, layer, head]
        axis.imshow(weights_TT, vmin=0, vmax=1, cmap="Greys", interpolation="nearest")
        axis.set_xticks([])
        axis.set_yticks([])
        if n == 0:
            of_head = f", head {head + 1}" if each else ""
            axis.set_title(f"layer {layer + 1}{of_head}", fontsize=8)
        if column == 0:
            axis.set_ylabel(f"loop {n + 1}", fontsize=8)
    return png(figure), each


def held(found: Decoded, unit: str) -> bytes:
    """What probes find: of the model, of fresh parameters and of the construction, side by side."""
    panels = {"trained": found.probed_QL, "fresh parameters": found.fresh_QL}
    if found.built_QL is not None:
        panels["construction"] = found.built_QL
    widths = [max(2, values_QL.shape[1]) for values_QL in panels.values()]
    size = (2.6 + 0.55 * sum(widths), 1.3 + 0.3 * len(found.names))
    figure, axes = subplots(
        *(1, len(panels)), figsize=size, sharey=True, layout="constrained", width_ratios=widths
    )
    for axis, (title, values_QL) in zip(axes, panels.items(), strict=True):
        image = axis.imshow(100 * values_QL, vmin=0, vmax=100, cmap="Greens", aspect="auto")
        for (q, n), value in np.ndenumerate(values_QL):
            color = "white" if value > 0.6 else "black"
            axis.text(n, q, f"{100 * value:.0f}", ha="center", va="center", fontsize=8, c=color)
        axis.set_title(title, fontsize=9)
        axis.set_xlabel(unit if title != "construction" else "loop")
        axis.set_xticks(range(values_QL.shape[1]), [str(n + 1) for n in range(values_QL.shape[1])])
    axes[0].set_yticks(range(len(found.names)), [as_text(name) for name in found.names], fontsize=8)
    figure.colorbar(image, ax=axes, label="accuracy of the probe, %")
    return png(figure)
