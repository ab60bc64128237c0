"""Metrics in the form of lm-eval, in its raw output and in the files that it writes. Needs no lm-eval."""

import math
from collections.abc import Mapping
from typing import Any, TypeGuard

import numpy as np

from minitron_cli.results.evaluation import MetricResult

TaskResults = dict[str, dict[str, MetricResult]]
"""Task -> metric -> value."""


def results(raw: Mapping[str, Any]) -> TaskResults:
    """Metrics of every task and group under `results`; what is no number is left out."""
    found: TaskResults = {}
    for task, entries in raw["results"].items():
        group = _group(raw, task)
        for key, value in entries.items():
            if not _is_metric(key, value):
                continue
            metric, _, filter_name = key.partition(",")
            found.setdefault(task, {})[metric_name(metric, filter_name)] = MetricResult(
                value=finite(value),
                stderr=finite(entries.get(f"{metric}_stderr,{filter_name}")),
                n=_items(raw, task),
                shots=_shots(raw, task),
                part_of=group,
            )
    return found


def _group(raw: Mapping[str, Any], task: str) -> str | None:
    """The nearest group above a task that has a metric, and stands for it in tables; None if no group has."""
    above, seen = {task}, {task}
    while above:
        groups = [name for name, inner in raw.get("group_subtasks", {}).items() if above & set(inner)]
        if measured := [name for name in groups if _has_metric(raw["results"].get(name, {}))]:
            return measured[-1]
        above = set(groups) - seen
        seen |= above
    return None


def _has_metric(entries: Mapping[str, Any]) -> bool:
    return any(_is_metric(key, value) for key, value in entries.items())


def _is_metric(key: str, value: object) -> bool:
    metric, comma, _ = key.partition(",")
    return bool(comma) and not metric.endswith("_stderr") and is_number(value)


def members(raw: Mapping[str, Any], task: str) -> list[str]:
    """Tasks of a group at any depth, or the task itself."""
    inner = raw.get("group_subtasks", {}).get(task)
    return [leaf for child in inner for leaf in members(raw, child)] if inner else [task]


def metric_name(metric: str, filter_name: str) -> str:
    """Name of a metric in results: lm-eval's, with the filter after a comma where there is a choice of filters."""
    return metric if filter_name == "none" else f"{metric},{filter_name}"


def is_number(value: object) -> TypeGuard[float]:
    """Whether lm-eval gave a number, Python's or numpy's."""
    return isinstance(value, int | float | np.number)


def finite(value: object) -> float | None:
    """The number, or None for anything else, infinity and NaN."""
    return float(value) if is_number(value) and math.isfinite(value) else None


def _items(raw: Mapping[str, Any], task: str) -> int | None:
    """Items of a task; of a group in a file, the sum over its tasks."""
    if (known := raw["results"][task].get("sample_len")) is not None:
        return int(known)
    counts = [raw.get("n-samples", {}).get(name, {}).get("effective") for name in members(raw, task)]
    return sum(counts) if all(counts) else None


def _shots(raw: Mapping[str, Any], task: str) -> int | None:
    """Few-shot examples of a task; of a group, if all members have the same number."""
    shots = {raw.get("n-shot", {}).get(name) for name in members(raw, task)}
    return shots.pop() if len(shots) == 1 else None
