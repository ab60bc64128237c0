"""Candidates of a search or prune artifact as plain rows, for the readers that do not read typed results yet."""

from collections.abc import Mapping, Sequence
from typing import Any

from minitron_cli.artifacts.artifact import Artifact
from minitron_cli.search.constraints import figure_of

CANDIDATES = "candidates.json"
MEASURED = "measured"  # in run.json: measured times, which are no part of a result's identity
LOSS = {"name": "loss", "better": "lower"}

Row = dict[str, Any]


def read(artifact: Artifact) -> dict[str, Any]:
    """Objective, tokens at each rung, and rows with all their costs and those in which they are Pareto-optimal."""
    if CANDIDATES not in artifact.manifest.files:
        return {}
    found = {"objective": LOSS, "rung_tokens": []} | artifact.read_json(CANDIDATES)
    measured = artifact.run.get(MEASURED, {})
    for row in found["candidates"]:
        row["costs"] |= measured.get(key(row["shape"]), {})
        row["unsurpassed"] = []
    _mark(found)
    return found


def key(shape: Mapping[str, int]) -> str:
    """Name of a shape in run.json; JSON objects are stored sorted."""
    return ",".join(f"{axis}={size}" for axis, size in sorted(shape.items()))


def costs_of(row: Mapping[str, Any]) -> list[str]:
    """Costs that quality can be weighed against."""
    return ["parameters", *(cost for cost in row["costs"] if cost != "mass")]


def judged(rows: Sequence[Row]) -> list[Row]:
    """Rows whose scores can be compared: those that were retrained, or all if none was."""
    return [row for row in rows if row["rungs"]] or list(rows)


def score_of(row: Row) -> float:
    """Score after equal training: at the first rung, which every retrained candidate has reached."""
    return float(row["rungs"][0] if row["rungs"] else row["zero_shot"])


def cost_of(row: Row, cost: str) -> float:
    """Cost of a row, by the kind of the constraint that counts it."""
    return float(row["parameters"] if cost == "parameters" else row["costs"][cost])


def _mark(found: dict[str, Any]) -> None:
    rows = judged(found["candidates"])
    value_sign = 1 if found["objective"]["better"] == "lower" else -1
    for cost in costs_of(rows[0]):
        cost_sign = -1 if figure_of(cost).better == "higher" else 1
        points = [(cost_sign * cost_of(row, cost), value_sign * score_of(row)) for row in rows]
        for row, (x, y) in zip(rows, points, strict=True):
            is_dominated = any(a <= x and b <= y and (a, b) != (x, y) for a, b in points)
            row["unsurpassed"] += [] if is_dominated else [cost]
