"""Means over items, their differences between two models, and standard errors. Knows numbers; no model, no task.

Two models find the same items hard, so the standard error of the paired difference is far smaller than the two models'
errors suggest. Items of one document are not independent, so errors are clustered by document (Miller 2024,
"Adding error bars to evals"). scipy is imported when it is needed: it takes half a second.
"""

# I item, G group

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from minitron_cli.results.evaluation import Difference

CONFIDENCE = 0.95
FEW_DOCUMENTS = 8  # fewer clusters give a poor estimate of the variance between documents; items are used instead
LOG_MAX = 700.0  # exp overflows above; perplexities of models this bad need not be distinguished


@dataclass(frozen=True)
class Items:
    """One metric of one model: a value for each item."""

    values: Sequence[float]
    weights: Sequence[float] | None = None
    """Weight of each item, such as its tokens; None: equal."""
    groups: Sequence[int] | None = None
    """Group number of each item; items of one group, such as a document, are correlated. None: independent items."""

    @property
    def mean(self) -> float:
        """Weighted mean of the values."""
        return float(np.average(self.values, weights=self.weights))

    @property
    def stderr(self) -> float | None:
        """Standard error of the mean; None for a single group."""
        return self._error(np.asarray(self.values, float) - self.mean)

    @property
    def clusters(self) -> int:
        """Number of independent groups."""
        return len(self.values) if self.groups is None else len(set(self.groups))

    def _error(self, residuals_I: np.ndarray) -> float | None:
        """Cluster-robust standard error of a weighted mean with these residuals, with the factor G / (G - 1)."""
        count = self.clusters
        if count < 2:
            return None
        weights_I = np.ones(len(residuals_I)) if self.weights is None else np.asarray(self.weights, float)
        groups_I = (
            np.arange(len(residuals_I)) if self.groups is None else np.unique(self.groups, return_inverse=True)[1]
        )
        sums_G = np.bincount(groups_I, weights_I * residuals_I)
        return math.sqrt(float(np.square(sums_G).sum()) * count / (count - 1)) / float(weights_I.sum())


def compare(model: Items, parent: Items) -> Difference:
    """Difference and ratio of two models' means over the same items in the same order."""
    assert len(model.values) == len(parent.values)
    assert (model.weights, model.groups) == (parent.weights, parent.groups)
    apart_I = np.asarray(model.values, float) - np.asarray(parent.values, float)
    difference = model.mean - parent.mean
    stderr = model._error(apart_I - difference)
    low, high = interval(difference, stderr, model.clusters) or (None, None)
    ratio, ratio_stderr = _ratio(model, parent)
    better, worse, p_value = _split(model, parent) or (None, None, None)
    return Difference(
        difference=difference,
        stderr=stderr,
        low=low,
        high=high,
        ratio=ratio,
        ratio_stderr=ratio_stderr,
        items=len(apart_I),
        clusters=model.clusters,
        better=better,
        worse=worse,
        mcnemar=p_value,
    )


def compare_exponentials(model: Items, parent: Items) -> Difference:
    """Difference and ratio of the exponentials of two means: of perplexities, if the items are losses.

    Standard errors are to first order (delta method): d exp(mean) = exp(mean) d mean.
    """
    logs = compare(model, parent)
    values = math.exp(min(model.mean, LOG_MAX)), math.exp(min(parent.mean, LOG_MAX))
    residuals_I, parent_residuals_I = (np.asarray(items.values, float) - items.mean for items in (model, parent))
    difference = values[0] - values[1]
    stderr = model._error(values[0] * residuals_I - values[1] * parent_residuals_I)
    low, high = interval(difference, stderr, logs.clusters) or (None, None)
    ratio = math.exp(min(logs.difference, LOG_MAX))
    ratio_stderr = None if logs.stderr is None else ratio * logs.stderr
    return Difference(
        difference=difference,
        stderr=stderr,
        low=low,
        high=high,
        ratio=ratio,
        ratio_stderr=ratio_stderr,
        items=logs.items,
        clusters=logs.clusters,
    )


def _ratio(model: Items, parent: Items) -> tuple[float | None, float | None]:
    """Ratio of the means and its standard error, to first order."""
    if parent.mean <= 0:
        return None, None
    ratio = model.mean / parent.mean
    residuals_I = (np.asarray(model.values, float) - ratio * np.asarray(parent.values, float)) / parent.mean
    return ratio, model._error(residuals_I)


def _split(model: Items, parent: Items) -> tuple[int, int, float | None] | None:
    """Items that only the model gets right, items that only the parent gets right, and McNemar's p-value."""
    if not set(model.values) | set(parent.values) <= {0, 1}:
        return None
    better = sum(m > p for m, p in zip(model.values, parent.values, strict=True))
    worse = sum(m < p for m, p in zip(model.values, parent.values, strict=True))
    return better, worse, mcnemar(better, worse) if model.clusters == len(model.values) else None


def mcnemar(better: int, worse: int) -> float:
    """Two-sided p-value of McNemar's exact test: of a split at least as uneven, under a fair coin."""
    from scipy.special import bdtr

    return min(1.0, 2 * float(bdtr(min(better, worse), better + worse, 0.5)))


def interval(
    value: float, stderr: float | None, clusters: int, confidence: float = CONFIDENCE
) -> tuple[float, float] | None:
    """Two-sided Student's t interval around a mean over `clusters` groups; None without a standard error."""
    if stderr is None:
        return None
    reach = student_t(confidence, clusters - 1) * stderr
    return value - reach, value + reach


def student_t(confidence: float, degrees_of_freedom: int) -> float:
    """Half-width of the central interval of Student's t that has the probability `confidence`."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees_of_freedom, (1 + confidence) / 2))
