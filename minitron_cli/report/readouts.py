"""Values that a plot on a page shows under a pointer or a finger, as SVG that needs no script."""

import math
from collections.abc import Iterator, Sequence
from functools import singledispatch
from typing import Any, NamedTuple

import numpy as np
from markupsafe import escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure as PlotFigure

from minitron_cli.figures import Figure
from minitron_cli.report.thinning import thinned
from minitron_cli.report.view import KeptBars, LayerBars, Line, Lines

POINTS = 300  # a curve needs no more at the size of a plot
READ = 40  # most values of one line that are shown
CONTEXT = ("faint", "dashed", "rings", "span")  # lines without values
POINTS_PER_INCH = 72


class Readout(NamedTuple):
    """One value and its place in the plot."""

    x: float
    y: float
    text: str
    color: int | None = None
    """Number of the series' color."""


def readouts(drawing: Any, axes: Axes, series: int) -> str:
    """Group of invisible circles, each with a text that the page shows while a pointer is on it. `axes`: as drawn.
    `series`: number of colors."""
    found = "".join(_marked(readout, axes, series) for readout in _values(drawing))
    return f'<g fill="none" pointer-events="all">{found}</g>\n' if found else ""


def _marked(found: Readout, axes: Axes, series: int) -> str:
    figure = axes.get_figure()
    assert isinstance(figure, PlotFigure)
    across, up = axes.transData.transform((found.x, found.y)) * POINTS_PER_INCH / figure.dpi
    width, height = figure.get_size_inches() * POINTS_PER_INCH
    down = height - up
    anchor = "end" if across > width / 2 else "start"
    name = "hit" if found.color is None else f"hit series-{found.color % series}"
    circle = f'<circle cx="{across:.1f}" cy="{down:.1f}" r="6"/>'
    place = f'x="{across:.1f}" y="{max(down - 10, 10):.1f}" text-anchor="{anchor}"'
    return f'<g class="{name}">{circle}<text display="none" {place}>{escape(found.text)}</text></g>'


@singledispatch
def _values(drawing: Any) -> Iterator[Readout]:
    yield from ()


@_values.register
def _of_lines(drawing: Lines) -> Iterator[Readout]:
    for line in drawing.lines:
        for x, y in _some(line) if line.style not in CONTEXT else ():
            if not math.isnan(y):  # a layer that was dropped has no value
                yield Readout(x, y, f"{_text(drawing.y, y)} at {_text(drawing.x, x)}", line.color)


@_values.register
def _of_bars(drawing: LayerBars) -> Iterator[Readout]:
    for layer, value in enumerate(drawing.values):
        yield Readout(layer, value, f"layer {layer}: {_text(drawing.y, value)}")


@_values.register
def _of_kept(drawing: KeptBars) -> Iterator[Readout]:
    for row, bars in enumerate(drawing.rows):
        before, after = sum(bar.before for bar in bars), sum(bar.after for bar in bars)
        name = f"layer {row - 1}" if row else "embeddings"
        text = f"{name}: {drawing.x.cell(before)} to {drawing.x.cell(after)} {drawing.x.title}"
        yield Readout(before / 2, row - 1, text)


def points_of(line: Line) -> np.ndarray:
    """Horizontal and vertical values [2, N] of a line as it is drawn: a curve is thinned."""
    points_2N = np.array(line.points, dtype=float).reshape(-1, 2).T
    return points_2N if line.style == "points" else thinned(points_2N, POINTS)


def _some(line: Line) -> Sequence[tuple[float, float]]:
    """At most `READ` points of a line as it is drawn, evenly spaced, its last one among them."""
    points = points_of(line).T.tolist()
    return points[:: -max(1, -(-len(points) // READ))][::-1]


def _text(figure: Figure, value: float) -> str:
    return figure.text(value) if figure.unit else f"{figure.cell(value)} {figure.title}"
