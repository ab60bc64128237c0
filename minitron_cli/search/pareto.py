"""Which candidates nobody would pass over."""

from collections.abc import Sequence
from typing import Any

from minitron_cli.search.constraints import figure_of

Row = dict[str, Any]  # of candidates.json


def judged(rows: Sequence[Row]) -> list[Row]:
    """Of candidates.json's rows, those whose scores compare: the retrained ones, if any were."""
    return [row for row in rows if row["rungs"]] or list(rows)


def score_of(row: Row) -> float:
    """After equal training: at the first rung, which all that were retrained have reached."""
    return float(row["rungs"][0] if row["rungs"] else row["zero_shot"])


def cost_of(row: Row, cost: str) -> float:
    return float(row["parameters"] if cost == "parameters" else row["costs"][cost])


def pareto_optimal(rows: Sequence[Row], cost: str, is_lower_better: bool) -> list[bool]:
    """Which rows no other one is as good as in this cost and in score, and better in one of them."""
    signs = -1 if figure_of(cost).better == "higher" else 1, 1 if is_lower_better else -1
    points = [(signs[0] * cost_of(row, cost), signs[1] * score_of(row)) for row in rows]
    return [not any(_beats(other, point) for other in points) for point in points]


def _beats(a: tuple[float, float], b: tuple[float, float]) -> bool:
    return a[0] <= b[0] and a[1] <= b[1] and a != b
