"""Points as text, for a terminal. Knows numbers and names of axes only."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

WIDTH, HEIGHT = 56, 12
Spelled = Callable[[float], str]


class Point(NamedTuple):
    x: float
    y: float
    mark: str
    """One character; of points in one place the last is seen."""


def scatter(points: Sequence[Point], x: Spelled, y: Spelled) -> list[str]:
    """The lines of a plot; `x` and `y` spell the numbers at its corners."""
    across, up = [point.x for point in points], [point.y for point in points]
    cells = [[" "] * WIDTH for _ in range(HEIGHT)]
    for point in points:
        row = HEIGHT - 1 - _place(point.y, up, HEIGHT)
        cells[row][_place(point.x, across, WIDTH)] = point.mark
    ends = {0: y(max(up)), HEIGHT - 1: y(min(up))}
    margin = max(map(len, ends.values()))
    lines = [f"{ends.get(i, ''):>{margin}} |{''.join(row).rstrip()}" for i, row in enumerate(cells)]
    low, high = x(min(across)), x(max(across))
    return [*lines, f"{'':>{margin}} +{'-' * WIDTH}", f"{'':>{margin}}  {low}{high:>{WIDTH - len(low)}}"]


def _place(value: float, values: Sequence[float], cells: int) -> int:
    low, high = min(values), max(values)
    return 0 if high == low else round((value - low) / (high - low) * (cells - 1))
