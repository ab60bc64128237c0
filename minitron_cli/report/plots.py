"""Plots of a view as SVG. No user's string reaches a plot of the page but the titles of figures, which code owns.

A plot is one small panel that a phone can show at nearly full size. On the page its text stays text in the page's font
and color: black becomes `currentColor`, a series' color a variable of the page's style sheet.
"""

import re
from collections.abc import Sequence
from functools import singledispatch
from io import StringIO
from textwrap import fill
from typing import Any, Literal

import numpy as np
from markupsafe import escape
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator, PercentFormatter, StrMethodFormatter

from minitron_cli.report.readouts import POINTS, points_of, readouts
from minitron_cli.report.text import capitalized
from minitron_cli.report.thinning import thinned
from minitron_cli.report.view import Contours, ImportanceMap, KeptBars, LayerBars, Lines, Plot, Style

# L layer, C channel, K kept

SERIES = ("#2563eb", "#c2410c", "#0f766e", "#be185d", "#7c3aed", "#64748b")  # var(--series-0) and so on in the page
PRUNED = "#dc2625"  # var(--pruned) in the page
PRUNED_ON_MAP = "#dc2626"  # a map looks the same on a light and on a dark page
VALUES = {"#000000": "currentColor", PRUNED: "var(--pruned)"} | {c: f"var(--series-{i})" for i, c in enumerate(SERIES)}
SIZE_INCHES = (4.8, 2.8)
COLUMNS = 128  # most columns of a map; each is the mean of its channels
CELLS = 1024  # most cells of a map that shows every channel in its place
BANDS = 12  # of values on a plane
LONGEST = 2.5  # length of a plane, in widths, that is drawn with one scale for both
ALONG_AXIS = 34  # most characters of a heading beside a vertical axis, in one line
STYLES: dict[Style, dict[str, Any]] = {
    "line": {},
    "faint": {"alpha": 0.55},
    "dashed": {"linestyle": (0, (4, 3)), "linewidth": 1.2, "marker": ""},
    "points": {"linestyle": "", "marker": "o", "markersize": 5.3, "alpha": 0.85},
    "span": {"linewidth": 1.2, "marker": "_", "markersize": 5.0},
    "rings": {"linestyle": "", "marker": "o", "markersize": 10.5, "fillstyle": "none"},
}
SETTINGS = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a title with a $ is no formula
    "svg.hashsalt": "minitron",  # else element ids are random
    "axes.titlesize": 10.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "image.interpolation": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "black",
    "grid.alpha": 0.12,
}


def svg(plot: Plot) -> str:
    """The plot as an SVG element of the page."""
    description = capitalized(f"{plot.drawing.y.title} against {plot.drawing.x.title}")  # what a screen reader says
    figure = _figure([plot])
    text = _inline(_written(figure), plot.name, description)
    return text.removesuffix("</svg>") + readouts(plot.drawing, figure.axes[0], len(SERIES)) + "</svg>"


def sheet(plots: Sequence[Plot]) -> str:
    """Plots under their captions, with their legends, as one SVG file on white, at most three in a row."""
    captions = [fill(plot.caption, 60) for plot in plots]
    figure = _figure(plots, columns=min(3, len(plots)), captions=captions, has_legends=True)
    return _written(figure, facecolor="white")


def _figure(
    plots: Sequence[Plot], captions: Sequence[str] = ("",), columns: int = 1, *, has_legends: bool = False
) -> Figure:
    rows = -(-len(plots) // columns)
    with style.context(["default", SETTINGS]):  # the user's matplotlibrc does not count
        width, height = SIZE_INCHES
        figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
        for i, (plot, caption) in enumerate(zip(plots, captions, strict=True)):
            axes = figure.add_subplot(rows, columns, i + 1, title=caption)
            _draw(plot.drawing, axes)
            if has_legends and plot.legend:
                swatches = [Line2D([], [], color=SERIES[number % len(SERIES)]) for number, _ in plot.legend]
                axes.legend(swatches, [name for _, name in plot.legend], fontsize="small")
    return figure


def _written(figure: Figure, **saved: Any) -> str:
    text = StringIO()
    with style.context(["default", SETTINGS]):
        figure.savefig(text, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")), **saved)
    return text.getvalue()


def _inline(svg: str, name: str, description: str) -> str:
    """SVG element for the page: no prolog, namespaces, fonts or style sheet; ids that no other plot has."""
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg[svg.index("<svg") :], count=1, flags=re.DOTALL)
    view_box = re.search(r'viewBox="[^"]*"', svg)
    assert view_box
    opening = f'<svg {view_box[0]} role="img" aria-label="{escape(description)}">'
    svg = re.sub(r"<svg[^>]*>", lambda _: opening, svg, count=1)
    svg = re.sub(r'(<g) id="(series-\d+)"', r'\1 class="\2"', svg)  # which the page can hide
    svg = re.sub(r'(<g) id="[^"]*"', r"\1", svg)
    svg = re.sub(r'(?<=\bid=")|(?<=xlink:href="#)|(?<=url\(#)', f"{name}-", svg)
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    for color, value in VALUES.items():
        svg = svg.replace(color, value)
    return re.sub(r"\s*\n\s*", "\n", svg).strip()


@singledispatch
def _draw(drawing: Any, axes: Axes) -> None:
    raise TypeError(f"a {type(drawing).__name__} is no drawing")


@_draw.register
def _lines(drawing: Lines, axes: Axes) -> None:
    for line in sorted(drawing.lines, key=lambda line: line.style != "faint"):
        x, y = points_of(line)
        marker = "o" if len(x) <= 40 else ""  # if there is room for one per point
        number = line.color % len(SERIES)
        (drawn,) = axes.plot(x, y, **{"color": SERIES[number], "marker": marker} | STYLES[line.style])
        drawn.set_gid(f"series-{number}")
    if {line.style for line in drawing.lines} <= {"points", "span"}:
        axes.margins(0.15)  # a few points, none of them on the frame
    if drawing.reference is not None:
        axes.axhline(drawing.reference, color="black", alpha=0.7, **STYLES["dashed"])
    axes.xaxis.set_major_formatter(_percent() if drawing.x.style == "share" else _short())
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=drawing.x.style == "count"))
    axes.set(xlabel=drawing.x.heading, ylabel=_upright(drawing.y.heading))
    if drawing.y.style == "count":
        axes.yaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if drawing.y.style == "share":
        axes.yaxis.set_major_formatter(_percent())
        axes.set(ylim=(None, 1.02))
        low, high = axes.get_ylim()
        axes.set(yticks=[tick for tick in axes.get_yticks() if low <= tick <= 1], ylim=(low, high))


def _percent() -> PercentFormatter:
    """Format of the ticks of shares; one for each axis, which it belongs to."""
    return PercentFormatter(1.0, decimals=0)


def _short() -> FuncFormatter:
    """Format of the ticks of counts: 64k, 2M, 8B; one for each axis."""
    return FuncFormatter(lambda value, _: EngFormatter(sep="").format_eng(value).replace("G", "B"))


@_draw.register
def _layer_bars(drawing: LayerBars, axes: Axes) -> None:
    values_L = np.asarray(drawing.values, dtype=float)
    colors = [PRUNED if layer in drawing.dropped else SERIES[0] for layer in range(len(values_L))]
    axes.bar(range(len(values_L)), values_L, color=colors, width=0.75)
    _log_if_wide(axes, values_L)
    axes.grid(visible=False, axis="x")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set(xlabel=drawing.x.heading, ylabel=drawing.y.heading)


def _upright(heading: str) -> str:
    """Heading of a vertical axis; one that is longer than the axis has its unit in a second line."""
    return heading if len(heading) <= ALONG_AXIS else heading.replace(" (", "\n(", 1)


@_draw.register
def _kept_bars(drawing: KeptBars, axes: Axes) -> None:
    """Bars from the embeddings up; the pruned end of each part is red."""
    for row, bars in enumerate(drawing.rows):
        left = 0.0
        for bar in bars:
            axes.barh(row - 1, bar.after, left=left, color=SERIES[bar.color], height=0.75)
            axes.barh(row - 1, bar.before - bar.after, left=left + bar.after, color=PRUNED, height=0.75, alpha=0.45)
            left += bar.before
    axes.grid(visible=False, axis="y")
    axes.xaxis.set_major_formatter(_short())
    layers = len(drawing.rows) - 1
    axes.set_yticks([tick for tick in MaxNLocator(8, integer=True).tick_values(0, layers) if 0 <= tick < layers])
    axes.set(xlabel=drawing.x.heading, ylabel="layer (embeddings below 0)", ylim=(-1.6, len(drawing.rows) - 1.4))


@_draw.register
def _importance(drawing: ImportanceMap, axes: Axes) -> None:
    """A curve of channels that all layers share; a map of few channels in place, or of many channels sorted."""
    scores = drawing.scores.astype(float)
    kept = np.broadcast_to(drawing.kept, (*scores.shape[:-1], drawing.kept.shape[-1]))
    if scores.ndim == 2 and scores.size <= CELLS:
        _grid_map(axes, scores, kept, drawing.dropped)
        return
    share = kept.shape[-1] / scores.shape[-1]
    if scores.ndim == 1:
        _sorted_curve(axes, scores, kept, share)
    else:
        _sorted_map(axes, scores, kept, share, drawing.dropped)
    order = "channels" if share == 1 else "channels: kept | pruned"
    axes.set(xlabel=f"{order}, most important first (%)", xlim=(0, 100))


@_draw.register
def _contours(drawing: Contours, axes: Axes) -> None:
    """Bands with as many points of the grid each, since losses far from all models are of another size."""
    values = np.ma.masked_invalid(drawing.values_RC)
    finite = values.compressed()
    levels = np.unique(np.quantile(finite, np.linspace(0, 1, BANDS + 1))) if len(finite) else finite
    if len(levels) > 1:
        shown = axes.contourf(drawing.x_RC, drawing.y_RC, values, levels=levels, norm=BoundaryNorm(levels, 256))
        axes.figure.colorbar(shown, ax=axes, pad=0.02, aspect=25, format="%.4g").set_label(drawing.y.heading)
    for number, place in enumerate(drawing.points):
        axes.plot(*place, marker="o", color=SERIES[number % len(SERIES)], markeredgecolor="white", markersize=8)
    axes.grid(visible=False)
    axes.set(xlabel=drawing.x.heading, ylabel=drawing.x.heading, aspect=_aspect(drawing))


def _aspect(drawing: Contours) -> Literal["equal", "auto"]:
    """One scale for both directions, unless a plane that is far longer than wide would be a line."""
    short, long = sorted((np.ptp(drawing.x_RC), np.ptp(drawing.y_RC)))
    return "equal" if long <= LONGEST * short else "auto"


def _sorted_curve(axes: Axes, score_C: np.ndarray, kept_K: np.ndarray, share: float) -> None:
    """Curve over the channels that all layers share, in the order of `_sorted_map`."""
    x_N, y_N = thinned(np.stack([np.linspace(0, 100, len(score_C)), _kept_first(score_C, kept_K)]), POINTS)
    axes.plot(x_N, y_N, color=SERIES[0])
    if share < 1:
        axes.axvline(100 * share, color=PRUNED)
        axes.axvspan(100 * share, 100, color=PRUNED, alpha=0.12, linewidth=0)
    _log_if_wide(axes, score_C)
    axes.set(ylabel="importance")


def _sorted_map(axes: Axes, score_LC: np.ndarray, kept_LK: np.ndarray, share: float, dropped: Sequence[int]) -> None:
    """Map of every layer's channels: the kept ones, then the pruned ones, each from the most important down."""
    rows_LC = np.stack([_kept_first(*row) for row in zip(score_LC, kept_LK, strict=True)])
    values = np.log10(np.maximum(thinned(_relative(rows_LC, dropped), COLUMNS), 1e-6))
    _show_map(axes, values, (0.0, 100.0), "importance (log10, best = 0)")
    for color, width in (("white", 3.5), (PRUNED_ON_MAP, 1.6)) if share < 1 else ():
        axes.axvline(100 * share, color=color, linewidth=width)


def _grid_map(axes: Axes, score_LC: np.ndarray, kept_LK: np.ndarray, dropped: Sequence[int]) -> None:
    """Map of few channels, each in its place, with a cross on those that were pruned."""
    layers, channels = score_LC.shape
    pruned = [(c, row) for row in range(layers) if row not in dropped for c in range(channels) if c not in kept_LK[row]]
    _show_map(axes, _relative(score_LC, dropped), (-0.5, channels - 0.5), "importance (best = 1)")
    for color, width in (("white", 2.6), (PRUNED_ON_MAP, 1.3)) if pruned else ():
        axes.add_patch(PathPatch(_crosses(pruned), facecolor="none", edgecolor=color, linewidth=width))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set(xlabel="index")


def _crosses(places: Sequence[tuple[int, int]]) -> Path:
    """Crosses as one path, which takes a fraction of the bytes of markers."""
    strokes = np.array([[-1, -1], [1, 1], [-1, 1], [1, -1]]) * 0.28
    points = np.array(places, dtype=float).reshape(-1, 1, 2) + strokes
    return Path(points.reshape(-1, 2), [Path.MOVETO, Path.LINETO] * (2 * len(places)))


def _show_map(axes: Axes, values_LC: np.ndarray, across: tuple[float, float], title: str) -> None:
    """Draw a map with layer 0 at the bottom, and its color bar."""
    image = axes.imshow(values_LC, aspect="auto", origin="lower", extent=(*across, -0.5, len(values_LC) - 0.5))
    axes.figure.colorbar(image, ax=axes, pad=0.02, aspect=25).set_label(title)
    axes.grid(visible=False)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set(ylabel="layer")


def _kept_first(score_C: np.ndarray, kept_K: np.ndarray) -> np.ndarray:
    is_pruned_C = ~np.isin(np.arange(len(score_C)), kept_K)
    return score_C[np.lexsort((-score_C, is_pruned_C))]


def _relative(values_LC: np.ndarray, dropped: Sequence[int]) -> np.ndarray:
    """Values over the best, NaN in dropped layers, whose channels were not ranked."""
    values_LC = values_LC.copy()
    values_LC[list(dropped)] = np.nan
    best = np.nanmax(values_LC) if np.isfinite(values_LC).any() else 1.0
    return values_LC / (best if best > 0 else 1.0)


def _log_if_wide(axes: Axes, values: np.ndarray) -> None:
    if len(values) and values.min() > 0 and values.max() > 50 * values.min():
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
