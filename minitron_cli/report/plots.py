"""Plots of a view as inline SVG. No user's string reaches a plot except the titles of figures, which code owns.

A plot is one small panel that a phone can show at nearly full size. Its text stays text in the page's font and color:
black becomes `currentColor`, a series' color a variable of the page's style sheet.
"""

import re
from collections.abc import Callable, Sequence, Sized
from functools import singledispatch
from io import StringIO
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter, StrMethodFormatter

from minitron_cli.figures import Figure as Quantity
from minitron_cli.report.view import ImportanceMap, LayerBars, Line, Lines, Plot, Scatter

# L layer, C channel, K kept

SERIES = ("#2563eb", "#c2410c", "#0f766e", "#be185d", "#7c3aed", "#64748b")  # var(--series-0) and so on in the page
PRUNED = "#dc2625"  # var(--pruned) in the page
PRUNED_ON_MAP = "#dc2626"  # a map looks the same on a light and on a dark page
VALUES = {"#000000": "currentColor", PRUNED: "var(--pruned)"} | {c: f"var(--series-{i})" for i, c in enumerate(SERIES)}
SIZE_INCHES = (4.8, 2.8)
POINTS = 300  # a curve needs no more at this size
COLUMNS = 128  # most columns of a map; each is the mean of its channels
CELLS = 1024  # most cells of a map that shows every channel in its place
SETTINGS = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a title with a $ is no formula
    "svg.hashsalt": "minitron",  # else element ids are random
    "font.size": 10.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "image.interpolation": "none",
    "image.cmap": "viridis",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "black",
    "grid.alpha": 0.12,
}


def svg(plot: Plot) -> str:
    """The plot as an SVG element."""
    draw, description = _drawer(plot.drawing)
    return _svg(plot.name, description, draw)


@singledispatch
def _drawer(drawing: Any) -> tuple[Callable[[Axes], None], str]:
    """How to draw it, and what a screen reader says."""
    raise NotImplementedError(type(drawing))


@_drawer.register
def _lines(drawing: Lines) -> tuple[Callable[[Axes], None], str]:
    def draw(axes: Axes) -> None:
        for line in sorted(drawing.lines, key=lambda line: line.is_strong):
            _line(axes, line)
        if drawing.reference is not None:
            axes.axhline(drawing.reference, color="black", linestyle=(0, (4, 3)), linewidth=1.2, alpha=0.7)
        _number_axis(axes, drawing.x)
        axes.set(xlabel=drawing.x.heading, ylabel=drawing.y.heading)
        if drawing.y.style == "share":
            _share_axis(axes)

    return draw, f"{_described(drawing.y)} against {drawing.x.title}"


def _line(axes: Axes, line: Line) -> None:
    points = _thinned(np.asarray(line.x, dtype=float), np.asarray(line.y, dtype=float))
    axes.plot(
        *points, color=SERIES[line.color % len(SERIES)], marker=_marker(line.x), alpha=1 if line.is_strong else 0.55
    )


def _number_axis(axes: Axes, x: Quantity) -> None:
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=x.style == "count"))


def _share_axis(axes: Axes) -> None:
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set(ylim=(None, 1.02))
    low, high = axes.get_ylim()
    axes.set(yticks=[tick for tick in axes.get_yticks() if low <= tick <= 1], ylim=(low, high))


@_drawer.register
def _layer_bars(drawing: LayerBars) -> tuple[Callable[[Axes], None], str]:
    values_L = np.asarray(drawing.values, dtype=float)
    colors = [PRUNED if layer in drawing.dropped else SERIES[0] for layer in range(len(values_L))]

    def draw(axes: Axes) -> None:
        axes.bar(range(len(values_L)), values_L, color=colors, width=0.75)
        _log_if_wide(axes, values_L)
        axes.grid(visible=False, axis="x")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlabel="layer", ylabel=drawing.y.heading)

    return draw, f"{_described(drawing.y)} by layer"


@_drawer.register
def _scatter(drawing: Scatter) -> tuple[Callable[[Axes], None], str]:
    def draw(axes: Axes) -> None:
        front = sorted((point.x, point.y) for point in drawing.points if point.is_optimal)
        chosen = [(point.x, point.y) for point in drawing.points if point.is_chosen]
        axes.plot(*_columns_of(front), color=SERIES[5], linestyle=(0, (4, 3)), linewidth=1.2)
        axes.scatter(*_columns_of([(p.x, p.y) for p in drawing.points]), color=SERIES[2], s=28, alpha=0.85)
        axes.scatter(*_columns_of(chosen), s=110, facecolor="none", edgecolor=SERIES[1])
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set(xlabel=drawing.x.heading, ylabel=drawing.y.heading)
        axes.margins(0.1)

    return draw, f"{_described(drawing.y)} of every candidate against {drawing.x.title}"


def _columns_of(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _described(figure: Quantity) -> str:
    return figure.title[:1].upper() + figure.title[1:]


@_drawer.register
def _importance(drawing: ImportanceMap) -> tuple[Callable[[Axes], None], str]:
    """A curve of channels that all layers share; a map of few channels in place, or of many channels sorted."""
    scores = drawing.scores.astype(float)
    if scores.ndim == 1:
        return _sorted_curve(scores, drawing.kept), "Importance of the channels, sorted; a line marks the pruned ones"
    kept_LK = np.broadcast_to(drawing.kept, (len(scores), drawing.kept.shape[-1]))
    if scores.size <= CELLS:
        return _grid_map(scores, kept_LK, drawing.dropped), "Importance by layer and index; crosses mark pruned ones"
    return _sorted_map(scores, kept_LK, drawing.dropped), "Importance of every layer's channels, sorted"


def _sorted_map(score_LC: np.ndarray, kept_LK: np.ndarray, dropped: Sequence[int]) -> Callable[[Axes], None]:
    """Map of every layer's channels: the kept ones, then the pruned ones, each from the most important down."""
    rows_LC = np.stack([_kept_first(*row) for row in zip(score_LC, kept_LK, strict=True)])
    rows_LC = _relative(_without(rows_LC, dropped))
    share = kept_LK.shape[1] / score_LC.shape[1]

    def draw(axes: Axes) -> None:
        bar = _show_map(axes, np.log10(np.maximum(_columns(rows_LC), 1e-6)), (0.0, 100.0))
        bar.set_label("importance (log10, best = 0)")
        for color, width in (("white", 3.5), (PRUNED_ON_MAP, 1.6)) if share < 1 else ():
            axes.axvline(100 * share, color=color, linewidth=width)
        axes.set(xlabel=_order(share), ylabel="layer")

    return draw


def _grid_map(score_LC: np.ndarray, kept_LK: np.ndarray, dropped: Sequence[int]) -> Callable[[Axes], None]:
    """Map of few channels, each in its place, with a cross on those that were pruned."""
    layers, channels = score_LC.shape
    rows_LC = _relative(_without(score_LC, dropped))
    pruned = [(c, row) for row in range(layers) if row not in dropped for c in range(channels) if c not in kept_LK[row]]

    def draw(axes: Axes) -> None:
        _show_map(axes, rows_LC, (-0.5, channels - 0.5)).set_label("importance (best = 1)")
        for color, width in (("white", 2.6), (PRUNED_ON_MAP, 1.3)) if pruned else ():
            axes.add_patch(PathPatch(_crosses(pruned), facecolor="none", edgecolor=color, linewidth=width))
        axes.set(xlabel="index", ylabel="layer")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))

    return draw


def _sorted_curve(score_C: np.ndarray, kept_K: np.ndarray) -> Callable[[Axes], None]:
    """Curve over the channels that all layers share, in the order of `_sorted_map`."""
    values_C = _kept_first(score_C, kept_K)
    share = len(kept_K) / len(score_C)

    def draw(axes: Axes) -> None:
        axes.plot(*_thinned(np.linspace(0, 100, len(values_C)), values_C), color=SERIES[0])
        if share < 1:
            axes.axvline(100 * share, color=PRUNED)
            axes.axvspan(100 * share, 100, color=PRUNED, alpha=0.12, linewidth=0)
        _log_if_wide(axes, values_C)
        axes.set(xlabel=_order(share), ylabel="importance", xlim=(0, 100))

    return draw


def _crosses(places: Sequence[tuple[int, int]]) -> Path:
    """Crosses as one path, which takes a fraction of the bytes of markers."""
    strokes = np.array([[-1, -1], [1, 1], [-1, 1], [1, -1]]) * 0.28
    points = np.array(places, dtype=float).reshape(-1, 1, 2) + strokes
    return Path(points.reshape(-1, 2), [Path.MOVETO, Path.LINETO] * (2 * len(places)))


def _show_map(axes: Axes, values_LC: np.ndarray, across: tuple[float, float]) -> Any:
    """Draw a map with layer 0 at the bottom; returns its color bar."""
    layers = len(values_LC)
    image = axes.imshow(values_LC, aspect="auto", origin="lower", extent=(*across, -0.5, layers - 0.5))
    axes.grid(visible=False)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    return axes.figure.colorbar(image, ax=axes, pad=0.02, aspect=25)


def _kept_first(score_C: np.ndarray, kept_K: np.ndarray) -> np.ndarray:
    is_pruned_C = ~np.isin(np.arange(len(score_C)), kept_K)
    return score_C[np.lexsort((-score_C, is_pruned_C))]


def _order(share: float) -> str:
    return "channels, most important first (%)" if share == 1 else "channels: kept | pruned, most important first (%)"


# numbers


def _without(values_LC: np.ndarray, dropped: Sequence[int]) -> np.ndarray:
    """Values with NaN in dropped layers, whose channels were not ranked."""
    values_LC = values_LC.copy()
    values_LC[list(dropped)] = np.nan
    return values_LC


def _relative(values_LC: np.ndarray) -> np.ndarray:
    best = np.nanmax(values_LC) if np.isfinite(values_LC).any() else 1.0
    return values_LC / (best if best > 0 else 1.0)


def _columns(values_LC: np.ndarray) -> np.ndarray:
    if values_LC.shape[1] <= COLUMNS:
        return values_LC
    return np.stack([part.mean(axis=1) for part in np.array_split(values_LC, COLUMNS, axis=1)], axis=1)


def _thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most POINTS points, each the mean of its neighbors."""
    if len(x) <= POINTS:
        return x, y
    return _means(x), _means(y)


def _means(values: np.ndarray) -> np.ndarray:
    return np.array([part.mean() for part in np.array_split(values, POINTS)])


def _log_if_wide(axes: Axes, values: np.ndarray) -> None:
    if len(values) and values.min() > 0 and values.max() > 50 * values.min():
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))


def _marker(points: Sized) -> str:
    """Marker of a line: a dot if there is room for one per point."""
    return "o" if len(points) <= 40 else ""


# SVG


def _svg(name: str, description: str, draw: Callable[[Axes], None]) -> str:
    """Render one small plot. `description` is what a screen reader says."""
    with mpl.rc_context():
        mpl.rcdefaults()  # ignore the user's matplotlibrc
        mpl.rcParams.update(SETTINGS)
        figure = Figure(figsize=SIZE_INCHES, layout="constrained")
        draw(figure.add_subplot())
        text = StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _inline(text.getvalue(), name, description)


def _inline(svg: str, name: str, description: str) -> str:
    """SVG element for the page: no prolog, namespaces, fonts or style sheet; ids that no other plot has."""
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg[svg.index("<svg") :], count=1, flags=re.DOTALL)
    view_box = re.search(r'viewBox="[^"]*"', svg)
    assert view_box
    opening = f'<svg {view_box[0]} role="img" aria-label="{escape(description)}">'
    svg = re.sub(r"<svg[^>]*>", lambda _: opening, svg, count=1)
    svg = re.sub(r'(<g) id="[^"]*"', r"\1", svg)
    svg = re.sub(r'(?<=\bid=")|(?<=xlink:href="#)|(?<=url\(#)', f"{name}-", svg)
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    for color, value in VALUES.items():
        svg = svg.replace(color, value)
    return re.sub(r"\s*\n\s*", "\n", svg).strip()
