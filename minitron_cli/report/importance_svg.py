"""Importance in one SVG that stands alone: every axis, the layers, and how far the aggregations agree."""

from collections.abc import Mapping, Sequence
from io import StringIO

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from minitron_cli.report.plots import SERIES, SETTINGS

# L layer, C channel


def figure(
    axes: Mapping[str, np.ndarray],
    layers: Mapping[str, Sequence[float]],
    agreement: Mapping[str, Mapping[str, Mapping[str, float]]],
) -> str:
    """`axes`: [L, C] or [C] of each axis. `layers`: one curve per metric. `agreement`: of each axis, way by way."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(SETTINGS | {"figure.facecolor": "white"})
        drawn = Figure(figsize=(4.2 * 3, 3.4 * 3), layout="constrained")
        places = drawn.subplots(3, 3)
        for place, (axis, scores) in zip(places[0], axes.items(), strict=True):
            _sorted(place, axis, np.atleast_2d(scores))
        for place, (metric, values_L) in zip(places[1], layers.items(), strict=False):
            place.bar(range(len(values_L)), values_L, color=SERIES[0])
            place.set(title=metric.replace("_", " "), xlabel="layer")
        for place in places[1][len(layers) :]:
            place.set_axis_off()
        for place, (axis, ways) in zip(places[2], agreement.items(), strict=True):
            _agreement(place, axis, ways)
        text = StringIO()
        drawn.savefig(text, format="svg", metadata={"Date": None, "Creator": None}, facecolor="white")
    return text.getvalue()


def _sorted(place: Axes, axis: str, score_LC: np.ndarray) -> None:
    """A line per layer, from the first layer (dark) to the last."""
    colours = mpl.colormaps["viridis"](np.linspace(0, 0.9, len(score_LC)))
    for score_C, colour in zip(score_LC, colours, strict=True):
        place.plot(np.linspace(0, 100, len(score_C)), np.sort(score_C)[::-1], color=colour, linewidth=1)
    place.set(title=axis, xlabel="channels, most important first (%)", ylabel="importance", xlim=(0, 100))
    if score_LC.min() > 0:
        place.set_yscale("log")


def _agreement(place: Axes, axis: str, ways: Mapping[str, Mapping[str, float]]) -> None:
    image = place.imshow([[ways[a][b] for b in ways] for a in ways], vmin=0, vmax=1)
    place.set(title=f"{axis}: Spearman", xticks=range(len(ways)), yticks=range(len(ways)))
    place.set_xticklabels(ways, rotation=90)
    place.set_yticklabels(ways)
    place.grid(visible=False)
    place.figure.colorbar(image, ax=place)
