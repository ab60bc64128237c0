"""Measurements of one model on text and tasks, before they are compared with those of another model."""

from collections.abc import Mapping

from minitron_cli.evaluate.config import PERPLEXITY
from minitron_cli.evaluate.statistics import NATS_PER_BIT, Items, compare, compare_exponentials
from minitron_cli.results.evaluation import BITS_PER_BYTE, BYTE_PERPLEXITY, Difference, MetricResult, TaskSource
from minitron_cli.spec import Spec

EXPONENTIALS = {"perplexity": ("loss", 1.0), BYTE_PERPLEXITY: (BITS_PER_BYTE, NATS_PER_BIT)}
"""Metric on text -> the metric whose exponential it is, and the factor that makes nats of it."""


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

    @property
    def without_members(self) -> "Measurements":
        """The same without the members of groups of tasks that have metrics, which no table shows."""
        kept = {t: some for t, some in self.results.items() if all(one.part_of is None for one in some.values())}
        items = {task: some for task, some in self.items.items() if task in kept}
        return Measurements(results=kept, items=items, sources=self.sources)

    def __or__(self, other: "Measurements") -> "Measurements":
        """Measurements of both; those of `other` where both have a task."""
        return Measurements(
            results={**self.results, **other.results},
            items={**self.items, **other.items},
            sources={**self.sources, **other.sources},
        )


def against(measured: Measurements, parent: Measurements) -> dict[str, dict[str, Difference]]:
    """Task -> metric -> paired difference from the parent, or another model in its place; empty for itself."""
    if measured is parent:
        return {}
    found = {
        task: {
            name: compare(items, parent.items[task][name])
            for name, items in metrics.items()
            if name in parent.items.get(task, {})
        }
        for task, metrics in measured.items.items()
    }
    own, its = (model.items.get(PERPLEXITY, {}) for model in (measured, parent))
    for name, (logarithm, factor) in EXPONENTIALS.items():
        if logarithm in own and logarithm in its:
            losses = (items[logarithm].times(factor) for items in (own, its))
            found[PERPLEXITY][name] = compare_exponentials(*losses)
    return found
