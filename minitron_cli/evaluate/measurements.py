"""Measurements of one model on text and tasks, before they are compared with those of its parent."""

from collections.abc import Mapping

from minitron_cli.evaluate.statistics import Items
from minitron_cli.results.evaluation import MetricResult, TaskSource
from minitron_cli.spec import Spec


class Measurements(Spec):
    """Metrics of one model, with the score of each item."""

    results: Mapping[str, Mapping[str, MetricResult]] = {}
    """Task -> metric -> value; the members of a group of tasks follow it.

    A metric has lm-eval's name, with the filter after a comma where there is a choice of filters
    (`exact_match,strict-match`).
    """
    items: Mapping[str, Mapping[str, Items]] = {}
    """Task -> metric -> score of each item, for metrics that are means of such scores."""
    sources: Mapping[str, TaskSource] = {}
    """Task -> origin of its items on the hub; without tasks whose data are local."""

    def __or__(self, other: "Measurements") -> "Measurements":
        """Measurements of both; those of `other` where both have a task."""
        return Measurements(
            results={**self.results, **other.results},
            items={**self.items, **other.items},
            sources={**self.sources, **other.sources},
        )
