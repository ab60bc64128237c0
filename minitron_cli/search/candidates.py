"""The candidates of a search or a prune artifact, as those who show them read them."""

from collections.abc import Mapping
from typing import Any

from minitron_cli.artifacts.artifact import Artifact
from minitron_cli.search.pareto import judged, pareto_optimal

CANDIDATES = "candidates.json"
MEASURED = "measured"  # in run.json: what was timed, which is no part of a result's identity
LOSS = {"name": "loss", "better": "lower"}


def read(artifact: Artifact) -> dict[str, Any]:
    """Objective, tokens at each rung, and rows with all their costs and those at which nobody surpasses them."""
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
    """What run.json calls a shape; JSON objects come back sorted."""
    return ",".join(f"{axis}={size}" for axis, size in sorted(shape.items()))


def costs_of(row: Mapping[str, Any]) -> list[str]:
    """What quality can be weighed against."""
    return ["parameters", *(cost for cost in row["costs"] if cost != "mass")]


def _mark(found: dict[str, Any]) -> None:
    rows = judged(found["candidates"])
    for cost in costs_of(rows[0]):
        best = pareto_optimal(rows, cost, found["objective"]["better"] == "lower")
        for row, is_best in zip(rows, best, strict=True):
            row["unsurpassed"] += [cost] if is_best else []
