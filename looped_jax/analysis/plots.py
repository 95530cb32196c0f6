"""The report's figures, as PNG; matplotlib without a display."""

import dataclasses
import io
from collections.abc import Mapping, Sequence

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, Normalize
from matplotlib.figure import Figure

from looped_jax.analysis.fits import Line, ScalingLaw

Points = Sequence[tuple[float, float]]
# (x, y) by the name of the series.
Series = Mapping[str, Points]


def as_text(name: str) -> str:
    """A name as matplotlib shows it unchanged: it takes `$` for mathematics, and leaves what begins
    with `_` out of legends."""
    return ("\N{NO-BREAK SPACE}" if name.startswith("_") else "") + name.replace("$", r"\$")


def png(figure: Figure) -> bytes:
    """The figure, closed."""
    out = io.BytesIO()
    # Without a date or version in it, equal figures are equal files.
    figure.savefig(out, format="png", dpi=140, metadata={"Software": None})
    plt.close(figure)
    return out.getvalue()


def curves(
    series: Series,
    x: str,
    y: str,
    log_y: bool = False,
    title: str = "",
    y_range: tuple[float, float] | None = None,
) -> bytes:
    """Lines through points."""
    figure, axes = _axes(x, y, title)
    for name, points in series.items():
        axes.plot(*zip(*points, strict=True), marker="o", ms=3, label=as_text(name))
    if log_y:
        axes.set_yscale("log")
    if y_range:
        axes.set_ylim(*y_range)
    _legend(axes, len(series))
    return png(figure)


def isoplot(series: Series, y: str) -> bytes:
    """The metric over the log perplexity of each checkpoint, and by model a line with its 95%
    band (paper, section 3.4). Models with too few points are shown without."""
    figure, axes = _axes("log perplexity (nats per token)", y)
    for number, (name, points) in enumerate(series.items()):
        x_N, y_N = np.array(points, float).T
        colour = f"C{number % 10}"
        axes.plot(x_N, y_N, "o", ms=4, color=colour, label=as_text(name))
        line = Line.fit(x_N, list(y_N))
        if line is None:
            continue
        grid = np.linspace(x_N.min(), x_N.max(), 50)
        axes.plot(grid, line.at(grid), color=colour, lw=1.2)
        half = line.band(grid)
        if half is not None:
            middle = line.at(grid)
            axes.fill_between(grid, middle - half, middle + half, color=colour, alpha=0.15, lw=0)
    axes.invert_xaxis()  # Better models to the right.
    _legend(axes, len(series))
    return png(figure)


def scaling(series: Series, fits: Mapping[str, ScalingLaw], y: str) -> bytes:
    """A metric over effective depth on a logarithmic axis, with Acc = alpha log D + beta."""
    figure, axes = _axes("effective depth D (layers passed through)", y)
    depths = sorted({x for points in series.values() for x, _ in points})
    for number, (name, points) in enumerate(series.items()):
        colour = f"C{number % 10}"
        axes.plot(*zip(*points, strict=True), "o", ms=5, color=colour, label=as_text(name))
        if name in fits:
            x_N = np.array([min(x for x, _ in points), max(x for x, _ in points)])
            axes.plot(x_N, fits[name].alpha * np.log(x_N) + fits[name].beta, color=colour, lw=1.2)
    axes.set_xscale("log", base=2)
    axes.set_xticks(depths, [f"{d:g}" for d in depths])
    axes.minorticks_off()
    _legend(axes, len(series))
    return png(figure)


@dataclasses.dataclass(frozen=True)
class Panel:
    """One of several small pictures: lines in an order that their colours show, or named ones."""

    title: str
    ordered: Sequence[Points] = ()
    named: Series = dataclasses.field(default_factory=dict)
    is_cosine: bool = False


def panels(parts: Sequence[Panel], x: str, order: str) -> bytes:
    """Panels side by side over one x; ``order`` is what the ordered lines are numbered by, from
    1."""
    columns = 2 if len(parts) <= 4 else 3
    rows = -(-len(parts) // columns)
    figure, grid = plt.subplots(
        *(rows, columns),
        figsize=(0.9 + 3.3 * columns, 0.4 + 2.4 * rows),
        layout="constrained",
        squeeze=False,
    )
    count = max(len(part.ordered) for part in parts)
    colours = plt.get_cmap("viridis_r", count)
    for axes in grid.flat[len(parts) :]:
        axes.set_axis_off()
    for axes, part in zip(grid.flat, parts, strict=False):
        for number, points in enumerate(part.ordered):
            axes.plot(*zip(*points, strict=True), marker="o", ms=2.5, lw=1.2, color=colours(number))
        for number, (name, points) in enumerate(part.named.items()):
            grey = str(0.2 + 0.6 * number / len(part.named))
            axes.plot(*zip(*points, strict=True), marker="o", ms=2.5, color=grey, label=name)
        values = [y for points in (*part.ordered, *part.named.values()) for _, y in points]
        if part.is_cosine:  # 1 is what is looked for.
            axes.set_ylim(min(-0.05, 1.1 * min(values)), 1.05)
        elif min(values) > 0 and max(values) > 20 * min(values):
            axes.set_yscale("log")
        else:
            axes.set_ylim(0, 1.08 * max(values) or None)
        axes.set_title(part.title, fontsize=9)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
        if len(part.named) > 1:
            axes.legend(frameon=False, fontsize=8)
    figure.supxlabel(x, fontsize=9)
    bounds = BoundaryNorm(np.arange(0.5, count + 1), count)
    bar = figure.colorbar(ScalarMappable(bounds, colours), ax=grid, shrink=0.8, label=order)
    bar.set_ticks(range(1, count + 1, -(-count // 8)))
    bar.minorticks_off()
    return png(figure)


def heatmaps(cosines: Mapping[str, np.ndarray]) -> bytes:
    """Block-to-block cosine similarities, a small map per group of parameters, one scale."""
    columns = min(4, len(cosines))
    rows = -(-len(cosines) // columns)
    figure, grid = plt.subplots(
        rows,
        columns,
        figsize=(0.4 + 2.1 * columns, 0.3 + 2.2 * rows),
        layout="constrained",
        squeeze=False,
    )
    scale = Normalize(-1, 1)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, (name, cosine_NN) in zip(grid.flat, cosines.items(), strict=False):
        axes.set_axis_on()
        axes.imshow(cosine_NN, norm=scale, cmap="RdBu_r")
        axes.set_title(name.replace("/kernel", ""), fontsize=8)
        ticks = np.arange(len(cosine_NN))
        axes.set_xticks(ticks[:: max(1, len(ticks) // 6)])
        axes.set_yticks(ticks[:: max(1, len(ticks) // 6)])
        axes.tick_params(labelsize=7)
        if len(ticks) <= 4:
            for i in ticks:
                for j in ticks:
                    shade = "white" if abs(cosine_NN[i, j]) > 0.6 else "black"
                    text = f"{cosine_NN[i, j]:.2f}"
                    axes.text(j, i, text, ha="center", va="center", fontsize=7, color=shade)
    figure.colorbar(ScalarMappable(scale, "RdBu_r"), ax=grid, shrink=0.8, label="cosine")
    return png(figure)


def grid(
    rows: Sequence[Sequence[str]], x: str, y: Sequence[str], title: str, first: int = 0
) -> bytes:
    """Words in a grid, shaded where they are those of the last row; ``first`` is the first
    column's number."""
    columns = max(len(row) for row in rows)
    figure, axes = plt.subplots(
        figsize=(1.2 + 0.62 * columns, 1.1 + 0.42 * len(rows)), layout="constrained"
    )
    final = rows[-1]
    settled = np.array(
        [[float(i < len(row) and row[i] == final[i]) for i in range(columns)] for row in rows]
    )
    axes.imshow(settled, cmap="Greens", vmin=0, vmax=2.5, aspect="auto")
    for i, row in enumerate(rows):
        for j, word in enumerate(row):
            axes.text(j, i, as_text(word), ha="center", va="center", fontsize=8)
    axes.set_xticks(range(columns), [str(first + i) for i in range(columns)])
    axes.set_yticks(range(len(rows)), [as_text(name) for name in y])
    axes.set_xlabel(x)
    axes.set_title(as_text(title), fontsize=9)
    return png(figure)


def _axes(x: str, y: str, title: str = "") -> tuple[Figure, plt.Axes]:
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    axes.set_xlabel(x)
    axes.set_ylabel(as_text(y))
    axes.set_title(as_text(title))
    axes.grid(alpha=0.3)
    return figure, axes


def _legend(axes: plt.Axes, count: int) -> None:
    if count > 5:
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=8)
    else:
        axes.legend(loc="best", frameon=False, fontsize=8)
