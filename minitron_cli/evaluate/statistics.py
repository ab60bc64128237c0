"""Two models on the same items: how far apart they are, and how sure that is. Knows numbers; no model, no task.

What one item is hard for, both models find hard: the error of the difference, item by item, is far smaller than the two
errors suggest. Items of one document are not independent, so errors are counted by document (Miller 2024,
"Adding error bars to evals").
"""

# I item, G group

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

CONFIDENCE = 0.95
FEW_DOCUMENTS = 8  # fewer say little about what documents differ by, and the items are told apart instead
LOG_MAX = 700.0  # exp of more overflows; a model this bad has no perplexity worth telling apart


@dataclass(frozen=True)
class Items:
    """One metric of one model, item by item."""

    values: Sequence[float]
    weights: Sequence[float] | None = None
    """How much each counts, such as its tokens; None: all the same."""
    groups: Sequence[int] | None = None
    """Items of one group go right or wrong together, as those of one document do; None: each for itself."""

    @property
    def mean(self) -> float:
        return float(np.average(self.values, weights=self.weights))

    @property
    def stderr(self) -> float | None:
        """Standard error of the mean; None for a single group."""
        return self._error(np.asarray(self.values, float) - self.mean)

    @property
    def clusters(self) -> int:
        """How many independent groups there are."""
        return len(self.values) if self.groups is None else len(set(self.groups))

    def json(self) -> dict[str, Any]:
        return {"values": list(self.values), "weights": self.weights, "groups": self.groups}

    def _error(self, residuals_I: np.ndarray) -> float | None:
        """Of a weighted mean with these residuals: cluster-robust, with the factor G / (G - 1) for few groups."""
        count = self.clusters
        if count < 2:
            return None
        weights_I = np.ones(len(residuals_I)) if self.weights is None else np.asarray(self.weights, float)
        groups_I = (
            np.arange(len(residuals_I)) if self.groups is None else np.unique(self.groups, return_inverse=True)[1]
        )
        sums_G = np.bincount(groups_I, weights_I * residuals_I)
        return math.sqrt(float(np.square(sums_G).sum()) * count / (count - 1)) / float(weights_I.sum())


@dataclass(frozen=True)
class Paired:
    """A model against its parent on the same items."""

    difference: float
    """The model's mean less the parent's."""
    stderr: float | None
    low: float | None
    """The ends of the 95 % interval of the difference."""
    high: float | None
    ratio: float | None
    """The model's mean over the parent's; None where that is not above 0."""
    ratio_stderr: float | None
    items: int
    clusters: int
    better: int | None = None
    """Items that are 1 for the model and 0 for the parent, where the metric is 0 or 1."""
    worse: int | None = None
    mcnemar: float | None = None
    """Probability of so uneven a split if both were equally good: McNemar's exact test. It takes items for independent,
    so there is none where they share documents."""


def compare(model: Items, parent: Items) -> Paired:
    """The difference between two models' means. The items have to be the same, in the same order."""
    assert len(model.values) == len(parent.values)
    assert (model.weights, model.groups) == (parent.weights, parent.groups)
    apart_I = np.asarray(model.values, float) - np.asarray(parent.values, float)
    difference = model.mean - parent.mean
    stderr = model._error(apart_I - difference)
    low, high = interval(difference, stderr, model.clusters) or (None, None)
    ratio, ratio_stderr = _ratio(model, parent)
    split = _split(model, parent)
    return Paired(
        difference, stderr, low, high, ratio, ratio_stderr, len(apart_I), model.clusters, *(split or (None, None, None))
    )


def compare_exponentials(model: Items, parent: Items) -> Paired:
    """The same of the exponentials of the means, to first order: of perplexities, when the items are losses."""
    logs = compare(model, parent)
    values = math.exp(min(model.mean, LOG_MAX)), math.exp(min(parent.mean, LOG_MAX))
    residuals_I, parent_residuals_I = (np.asarray(items.values, float) - items.mean for items in (model, parent))
    difference = values[0] - values[1]
    stderr = model._error(values[0] * residuals_I - values[1] * parent_residuals_I)
    low, high = interval(difference, stderr, logs.clusters) or (None, None)
    ratio = math.exp(min(logs.difference, LOG_MAX))
    ratio_stderr = None if logs.stderr is None else ratio * logs.stderr
    return Paired(difference, stderr, low, high, ratio, ratio_stderr, logs.items, logs.clusters)


def _ratio(model: Items, parent: Items) -> tuple[float | None, float | None]:
    """The ratio of the means and its standard error, to first order."""
    if parent.mean <= 0:
        return None, None
    ratio = model.mean / parent.mean
    residuals_I = (np.asarray(model.values, float) - ratio * np.asarray(parent.values, float)) / parent.mean
    return ratio, model._error(residuals_I)


def _split(model: Items, parent: Items) -> tuple[int, int, float | None] | None:
    """Items that only the model gets right, only the parent, and McNemar's probability."""
    if not set(model.values) | set(parent.values) <= {0, 1}:
        return None
    better = sum(m > p for m, p in zip(model.values, parent.values, strict=True))
    worse = sum(m < p for m, p in zip(model.values, parent.values, strict=True))
    return better, worse, mcnemar(better, worse) if model.clusters == len(model.values) else None


def mcnemar(better: int, worse: int) -> float:
    """Two-sided exact probability of a split at least as uneven, of a fair coin."""
    total, less = better + worse, min(better, worse)
    # In logarithms: of thousands of items, the binomials are too large for a float.
    logs = [math.lgamma(total + 1) - math.lgamma(k + 1) - math.lgamma(total - k + 1) for k in range(less + 1)]
    return min(1.0, 2 * math.fsum(math.exp(log - total * math.log(2)) for log in logs))


def interval(
    value: float, stderr: float | None, clusters: int, confidence: float = CONFIDENCE
) -> tuple[float, float] | None:
    """The ends of the interval around a mean; None where there is no standard error."""
    if stderr is None:
        return None
    reach = student_t(confidence, clusters - 1) * stderr
    return value - reach, value + reach


def student_t(confidence: float, freedom: int) -> float:
    """How many standard errors to either side hold so much of Student's t. Exact for 1 and 2 degrees of freedom.

    Above, Cornish and Fisher's expansion about the normal (Abramowitz and Stegun 26.7.5): at 95 % and 3 degrees of
    freedom within 0.5 % of the truth, and closer with more.
    """
    if freedom == 1:
        return math.tan(math.pi * confidence / 2)
    if freedom == 2:
        return confidence * math.sqrt(2 / (1 - confidence**2))
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return sum(term / freedom**power for power, term in enumerate(terms))
