"""Figures as inline SVG. Knows matplotlib and numbers; no name of the user's ever reaches a figure.

A figure is one small panel, so that a phone can show it at nearly full size. Its text stays text and takes the page's
font and colour: black becomes `currentColor`, a series' colour a variable of the page's style sheet.
"""

import re
from collections.abc import Callable, Mapping, Sequence, Sized
from io import StringIO
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter, StrMethodFormatter

# L layer, C channel, K kept

SERIES = ("#2563eb", "#c2410c", "#0f766e", "#be185d", "#7c3aed", "#64748b")  # var(--series-0) and so on in the page
CUT = "#dc2625"  # var(--cut) in the page
CUT_ON_MAP = "#dc2626"  # a map looks the same on a light and on a dark page
VALUES = {"#000000": "currentColor", CUT: "var(--cut)"} | {c: f"var(--series-{i})" for i, c in enumerate(SERIES)}
SIZE_INCHES = (4.8, 2.8)
POINTS = 300  # a curve needs no more at this size
COLUMNS = 128  # of a map; each is the mean of the channels it stands for
CELLS = 1024  # of a map that shows every channel in its place
SETTINGS = {
    "svg.fonttype": "none",
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


def sorted_map(name: str, score_LC: np.ndarray, kept_LK: np.ndarray, dropped: Sequence[int]) -> str:
    """Importance of every layer's channels: the kept ones, then the cut ones, each from the most important down."""
    rows_LC = np.stack([_kept_first(*row) for row in zip(score_LC.astype(float), kept_LK, strict=True)])
    rows_LC = _relative(_without(rows_LC, dropped))

    def draw(axes: Axes) -> None:
        bar = _show_map(axes, np.log10(np.maximum(_columns(rows_LC), 1e-6)), (0.0, 100.0))
        bar.set_label("importance (log10, best = 0)")
        share = kept_LK.shape[1] / score_LC.shape[1]
        for colour, width in (("white", 3.5), (CUT_ON_MAP, 1.6)) if share < 1 else ():
            axes.axvline(100 * share, color=colour, linewidth=width)
        axes.set(xlabel=_order(share), ylabel="layer")

    return _svg(name, "Importance of the channels of every layer, sorted; a line marks the cut", draw)


def grid_map(name: str, score_LC: np.ndarray, kept_LK: np.ndarray, dropped: Sequence[int]) -> str:
    """Importance of few channels, each in its place, with a cross on those that were cut."""
    layers, channels = score_LC.shape
    rows_LC = _relative(_without(score_LC.astype(float), dropped))
    cut = [(c, row) for row in range(layers) if row not in dropped for c in range(channels) if c not in kept_LK[row]]

    def draw(axes: Axes) -> None:
        _show_map(axes, rows_LC, (-0.5, channels - 0.5)).set_label("importance (best = 1)")
        for colour, width in (("white", 2.6), (CUT_ON_MAP, 1.3)) if cut else ():
            axes.add_patch(PathPatch(_crosses(cut), facecolor="none", edgecolor=colour, linewidth=width))
        axes.set(xlabel="index", ylabel="layer")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))

    return _svg(name, "Importance by layer and index; a cross marks what was cut", draw)


def _crosses(places: Sequence[tuple[int, int]]) -> Path:
    """One path for all, which is a fraction of the size of a marker each."""
    strokes = np.array([[-1, -1], [1, 1], [-1, 1], [1, -1]]) * 0.28
    points = np.array(places, dtype=float).reshape(-1, 1, 2) + strokes
    return Path(points.reshape(-1, 2), [Path.MOVETO, Path.LINETO] * (2 * len(places)))


def _show_map(axes: Axes, values_LC: np.ndarray, across: tuple[float, float]) -> Any:
    """Layer 0 at the bottom, as the model is drawn in papers; returns the colour bar."""
    layers = len(values_LC)
    image = axes.imshow(values_LC, aspect="auto", origin="lower", extent=(*across, -0.5, layers - 0.5))
    axes.grid(visible=False)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    return axes.figure.colorbar(image, ax=axes, pad=0.02, aspect=25)


def sorted_curve(name: str, score_C: np.ndarray, kept_K: np.ndarray) -> str:
    """Importance of channels that all layers share, in the order of `sorted_map`."""
    values_C = _kept_first(score_C.astype(float), kept_K)
    share = len(kept_K) / len(score_C)

    def draw(axes: Axes) -> None:
        axes.plot(*_thinned(np.linspace(0, 100, len(values_C)), values_C), color=SERIES[0])
        if share < 1:
            axes.axvline(100 * share, color=CUT)
            axes.axvspan(100 * share, 100, color=CUT, alpha=0.12, linewidth=0)
        _log_if_wide(axes, values_C)
        axes.set(xlabel=_order(share), ylabel="importance", xlim=(0, 100))

    return _svg(name, "Importance of the channels, sorted; a line marks the cut", draw)


def _kept_first(score_C: np.ndarray, kept_K: np.ndarray) -> np.ndarray:
    is_cut_C = ~np.isin(np.arange(len(score_C)), kept_K)
    return score_C[np.lexsort((-score_C, is_cut_C))]


def _order(share: float) -> str:
    return "channels, most important first (%)" if share == 1 else "channels: kept | cut, most important first (%)"


def kept_shares(name: str, share_L: Mapping[int, np.ndarray]) -> str:
    """How much of each layer's importance survives, a line per axis (by the number of its colour)."""

    def draw(axes: Axes) -> None:
        for series, values_L in share_L.items():
            axes.plot(range(len(values_L)), values_L, marker=_marker(values_L), color=_colour(series))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlabel="layer", ylabel="importance kept", ylim=(None, 1.02))
        low, high = axes.get_ylim()
        axes.set(yticks=[tick for tick in axes.get_yticks() if low <= tick <= 1], ylim=(low, high))

    return _svg(name, "The share of each layer's importance that survives the cut", draw)


def layer_bars(name: str, values_L: Sequence[float], label: str, dropped: Sequence[int]) -> str:
    """One bar per layer; those of dropped layers stand out."""
    colours = [CUT if layer in dropped else SERIES[0] for layer in range(len(values_L))]

    def draw(axes: Axes) -> None:
        axes.bar(range(len(values_L)), values_L, color=colours, width=0.75)
        _log_if_wide(axes, np.asarray(values_L, dtype=float))
        axes.grid(visible=False, axis="x")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlabel="layer", ylabel=label)

    return _svg(name, f"{label.capitalize()} by layer", draw)


def pareto_scatter(name: str, points: Sequence[tuple[float, float, bool, bool]], x: str, y: str) -> str:
    """Score against a cost, of (cost, score, is chosen, is unsurpassed) points; a line through the unsurpassed."""

    def draw(axes: Axes) -> None:
        front = sorted((cost, score) for cost, score, _, is_unsurpassed in points if is_unsurpassed)
        axes.plot([c for c, _ in front], [s for _, s in front], color=SERIES[5], linestyle=(0, (4, 3)), linewidth=1.2)
        axes.scatter([p[0] for p in points], [p[1] for p in points], color=SERIES[2], s=28, alpha=0.85)
        chosen = [(cost, score) for cost, score, is_chosen, _ in points if is_chosen]
        axes.scatter([c for c, _ in chosen], [s for _, s in chosen], s=110, facecolor="none", edgecolor=SERIES[1])
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set(xlabel=x, ylabel=y)
        axes.margins(0.1)

    return _svg(name, "Score of every candidate against what it costs", draw)


def halving_curves(name: str, lines: Sequence[tuple[Sequence[float], Sequence[float], bool]], y: str) -> str:
    """Scores against tokens, a line per candidate, the chosen one in colour; each ends where it was dropped."""

    def draw(axes: Axes) -> None:
        for tokens, scores, is_chosen in sorted(lines, key=lambda line: line[2]):
            colour, alpha = (SERIES[1], 1.0) if is_chosen else (SERIES[2], 0.55)
            axes.plot(tokens, scores, marker="o", color=colour, alpha=alpha)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.set(xlabel="tokens of retraining", ylabel=y)

    return _svg(name, "Score of every retrained candidate, rung by rung", draw)


def curves(
    name: str,
    label: str,
    runs: Mapping[int, tuple[Sequence[float], Sequence[float]]],
    reference: float | None = None,
) -> str:
    """Values against tokens, a line per run (by the number of its colour); a dashed line at the reference."""

    def draw(axes: Axes) -> None:
        for series, (tokens, values) in runs.items():
            line = _thinned(np.asarray(tokens), np.asarray(values))
            axes.plot(*line, color=_colour(series), marker=_marker(tokens))
        if reference is not None:
            axes.axhline(reference, color="black", linestyle=(0, (4, 3)), linewidth=1.2, alpha=0.7)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.set(xlabel="tokens", ylabel=label)

    return _svg(name, f"{label.capitalize()} against training tokens", draw)


# numbers


def _without(values_LC: np.ndarray, dropped: Sequence[int]) -> np.ndarray:
    """Nothing where a layer is gone: its channels were not ranked for anything."""
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
    """At most POINTS points, each the mean of its neighbours."""
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
    """A dot where there is room for one each."""
    return "o" if len(points) <= 40 else ""


def _colour(series: int) -> str:
    return SERIES[series % len(SERIES)]


# SVG


def _svg(name: str, description: str, draw: Callable[[Axes], None]) -> str:
    """`description` is what a screen reader says; both arguments are ours, not the user's."""
    with mpl.rc_context():
        mpl.rcdefaults()  # whatever the user's matplotlibrc says
        mpl.rcParams.update(SETTINGS)
        figure = Figure(figsize=SIZE_INCHES, layout="constrained")
        draw(figure.add_subplot())
        text = StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _inline(text.getvalue(), name, description)


def _inline(svg: str, name: str, description: str) -> str:
    """An element for the page: no prolog, namespaces, fonts or style sheet; ids that no other figure has."""
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg[svg.index("<svg") :], count=1, flags=re.DOTALL)
    view_box = re.search(r'viewBox="[^"]*"', svg)
    assert view_box
    svg = re.sub(r"<svg[^>]*>", f'<svg {view_box[0]} role="img" aria-label="{description}">', svg, count=1)
    svg = re.sub(r'(<g) id="[^"]*"', r"\1", svg)
    svg = re.sub(r'(?<=\bid=")|(?<=xlink:href="#)|(?<=url\(#)', f"{name}-", svg)
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    for colour, value in VALUES.items():
        svg = svg.replace(colour, value)
    return re.sub(r"\s*\n\s*", "\n", svg).strip()
