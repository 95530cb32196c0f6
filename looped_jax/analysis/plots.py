"""The report's figures, as PNG. Made without pyplot, whose state belongs to who imports us: in a
notebook figures are shown as before."""

import dataclasses
import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

from looped_jax.analysis.fits import Line, ScalingLaw

Points = Sequence[tuple[float, float]]
# (x, y) by the name of the series.
Series = Mapping[str, Points]
# Of a line whose points are drawn one by one.
MOST_DOTS = 40
DOTS: dict[str, Any] = dict(marker="o", ms=3)
DASHED: dict[str, Any] = dict(ls="--", lw=1.2, **DOTS)
RING: dict[str, Any] = dict(ls="", marker="o", ms=10, mfc="none", mew=1.6)


def as_text(name: str) -> str:
    """A name as matplotlib shows it unchanged: it takes `$` for mathematics, and leaves what begins
    with `_` out of legends."""
    return ("\N{NO-BREAK SPACE}" if name.startswith("_") else "") + name.replace("$", r"\$")


def subplots(rows: int = 1, columns: int = 1, **options: Any) -> tuple[Figure, Any]:
    """As pyplot's, of figures that nobody else knows of: ``figsize``, ``layout``, and what
    Figure.subplots takes."""
    of_figure = {name: options.pop(name) for name in ("figsize", "layout") if name in options}
    figure = Figure(**of_figure)
    return figure, figure.subplots(rows, columns, **options)


def png(figure: Figure) -> bytes:
    """The figure."""
    out = io.BytesIO()
    # Without a date or version in it, equal figures are equal files.
    figure.savefig(out, format="png", dpi=140, metadata={"Software": None})
    return out.getvalue()


@dataclasses.dataclass(frozen=True)
class Curve:
    """A model's line. ``seeds``: those whose mean it is, drawn pale; ``beside``: what else was
    measured of it, dashed; ``mark``: the x that gets a ring; ``number``: of its colour, so that a
    model keeps it from figure to figure."""

    name: str
    points: Points
    seeds: Sequence[Points] = ()
    beside: Points = ()
    mark: float | None = None
    number: int | None = None


def curves(
    lines: Sequence[Curve],
    x: str,
    y: str,
    log_y: bool = False,
    title: str = "",
    y_range: tuple[float, float] | None = None,
    beside: tuple[str, str] | None = None,
    mark: str = "",
) -> bytes:
    """Lines through points over whole numbers. ``beside`` names the points of lines and those
    beside them, ``mark`` what a ring says, for the legend."""
    figure, axes = _axes(x, y, title)
    for at, line in enumerate(lines):
        number = at if line.number is None else line.number
        # Ten colours, then the same ones dotted.
        style: dict[str, Any] = dict(color=f"C{number % 10}", ls="-" if number < 10 else ":")
        for points in line.seeds:
            axes.plot(*zip(*points, strict=True), lw=0.8, alpha=0.4, **style)
        if line.points:
            # Many points are a line of their own.
            dots: dict[str, Any] = DOTS if len(line.points) <= MOST_DOTS else {}
            axes.plot(*zip(*line.points, strict=True), label=as_text(line.name), **dots, **style)
        if line.beside:
            label = None if line.points else as_text(line.name)
            axes.plot(*zip(*line.beside, strict=True), label=label, **(style | DASHED))
        for point in line.points:
            if mark and point[0] == line.mark:
                axes.plot(*point, color=style["color"], **RING)
    more: list[Line2D] = []
    if beside:
        more.append(Line2D([], [], color="grey", label=beside[0]))
        more.append(Line2D([], [], color="grey", label=beside[1], **DASHED))
    if mark:
        more.append(Line2D([], [], color="grey", label=mark, **RING))
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    if log_y:
        _logarithmic(axes)
    if y_range:
        axes.set_ylim(*y_range)
    _legend(figure, axes, more)
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
    _legend(figure, axes)
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
    _legend(figure, axes)
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
    figure, grid = subplots(
        *(rows, columns),
        figsize=(0.9 + 3.3 * columns, 0.4 + 2.4 * rows),
        layout="constrained",
        squeeze=False,
    )
    count = max(len(part.ordered) for part in parts)
    colours = mpl.colormaps["viridis_r"].resampled(count)
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
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.grid(alpha=0.3)
        if len(part.named) > 1:
            axes.legend(frameon=False, fontsize=8)
    figure.supxlabel(x, fontsize=9)
    bounds = BoundaryNorm(np.arange(0.5, count + 1), count)
    bar = figure.colorbar(ScalarMappable(bounds, colours), ax=grid, shrink=0.8, label=order)
    bar.set_ticks(range(1, count + 1, -(-count // 8)))
    bar.minorticks_off()
    return png(figure)


def heatmaps(cosines: Mapping[str, np.ndarray], of: str) -> bytes:
    """Cosines of blocks, or whatever they are ``of``, with each other: a small map per group of
    parameters, one scale."""
    columns = min(4, len(cosines))
    rows = -(-len(cosines) // columns)
    figure, grid = subplots(
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
    figure.supxlabel(of, fontsize=9)
    figure.supylabel(of, fontsize=9)
    figure.colorbar(ScalarMappable(scale, "RdBu_r"), ax=grid, shrink=0.8, label="cosine")
    return png(figure)


def _axes(x: str, y: str, title: str = "") -> tuple[Figure, Axes]:
    figure, axes = subplots(figsize=(6.2, 4), layout="constrained")
    axes.set_xlabel(x)
    axes.set_ylabel(as_text(y))
    axes.set_title(as_text(title))
    axes.grid(alpha=0.3)
    return figure, axes


def _logarithmic(axes: Axes) -> None:
    """A logarithmic y with ticks that are numbers, also where it spans no power of ten."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    locator = LogLocator(subs=(1, 2, 5)) if high > 10 * low else MaxNLocator(6)
    axes.yaxis.set_major_locator(locator)
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.6g}"))


def _legend(figure: Figure, axes: Axes, more: Sequence[Line2D] = ()) -> None:
    """Inside where there is room, below otherwise; ``more``: entries of no line."""
    found: list[Any] = [*axes.get_legend_handles_labels()[0], *more]
    longest = max((len(str(handle.get_label())) for handle in found), default=0)
    if len(found) <= 5 and longest <= 24:
        axes.legend(handles=found, loc="best", frameon=False, fontsize=8)
        return
    columns = max(1, min(len(found), 84 // (longest + 6)))
    figure.set_figheight(figure.get_figheight() + 0.19 * -(-len(found) // columns))
    figure.legend(handles=found, ncols=columns, loc="outside lower left", frameon=False, fontsize=8)
