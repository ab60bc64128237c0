"""Means over items, their differences between two models, and standard errors. Knows numbers; no model, no task.

Two models find the same items hard, so the standard error of the paired difference is far smaller than the two models'
errors suggest. Items of one document are not independent, so errors are clustered by document (Miller 2024,
"Adding error bars to evals"). Documents differ in length: a long one pulls the mean toward itself, so its distance from
the mean says too little, and few documents decide. The error is therefore that of the jackknife over documents, and the
degrees of freedom count documents by their weights. scipy is imported when it is needed: it takes half a second.
"""

# I item, G group

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np

from minitron_cli.results.evaluation import Difference, Unit

CONFIDENCE = 0.95
FEW_DOCUMENTS = 2.0  # effective number below which documents leave no degree of freedom; parts of them are used then
NATS_PER_BIT = math.log(2)
LOG_MAX = 700.0  # exp overflows above; perplexities of models this bad need not be distinguished


@dataclass(frozen=True)
class Items:
    """One metric of one model: a value for each item."""

    values: Sequence[float]
    weights: Sequence[float] | None = None
    """Weight of each item, such as its tokens; None: equal."""
    groups: Sequence[int] | None = None
    """Document number of each item, whose items are correlated. None: all items are independent."""
    part: Literal["item", "block"] = "item"
    """What an item is: an answer, or the part of a document that is in one block."""

    def times(self, factor: float) -> "Items":
        """Items whose values are multiplied by a factor."""
        return replace(self, values=[value * factor for value in self.values])

    @property
    def mean(self) -> float:
        """Weighted mean of the values."""
        return float(np.average(self.values, weights=self.weights))

    @property
    def stderr(self) -> float | None:
        """Standard error of the mean; None for a single group."""
        return self.error(np.asarray(self.values, float) - self.mean)

    @property
    def unit(self) -> Unit:
        """What is taken for independent. Parts of documents, if one document outweighs the others.

        No spread between documents can be seen then; the error describes other parts of these documents, not others.
        """
        return self.part if self._groups_I is None else "document"

    @property
    def documents(self) -> int | None:
        """Number of documents; None if they are not known."""
        return None if self.groups is None else len(set(self.groups))

    @property
    def are_right_or_wrong(self) -> bool:
        """Whether the items are answers and every value is 1 or 0."""
        return self.part == "item" and set(self.values) <= {0, 1}

    @property
    def clusters(self) -> int:
        """Number of independent units."""
        return len(self._weights_G)

    @property
    def degrees_of_freedom(self) -> float:
        """Degrees of freedom of the standard error: the effective number of units less one, at least one."""
        return max(1.0, effective_number(self._weights_G) - 1)

    def error(self, residuals_I: np.ndarray) -> float | None:
        """Standard error by the jackknife over units of a weighted mean, from residuals whose weighted mean is 0.

        Without unit g, the mean differs by sum_g / (W - w_g), where sum_g is the unit's weighted sum of residuals, w_g
        its weight and W the weight of all. The variance is (G - 1) / G times the sum of squares over the G units. For
        units of equal weight this is the usual standard error. None for a single unit.
        """
        weights_G = self._weights_G
        if len(weights_G) < 2:
            return None
        changes_G = _sums(self._weights_I * residuals_I, self._groups_I) / (weights_G.sum() - weights_G)
        return math.sqrt(float(np.square(changes_G).sum()) * (1 - 1 / len(weights_G)))

    @cached_property
    def _weights_I(self) -> np.ndarray:
        return np.ones(len(self.values)) if self.weights is None else np.asarray(self.weights, float)

    @cached_property
    def _groups_I(self) -> np.ndarray | None:
        """Number of the unit of each item, from 0; None if every item is a unit."""
        if self.groups is None:
            return None
        numbers_I = np.unique(self.groups, return_inverse=True)[1]
        return None if effective_number(_sums(self._weights_I, numbers_I)) < FEW_DOCUMENTS else numbers_I

    @cached_property
    def _weights_G(self) -> np.ndarray:
        return _sums(self._weights_I, self._groups_I)


def _sums(values_I: np.ndarray, groups_I: np.ndarray | None) -> np.ndarray:
    """Sum over each group, [G]; the values themselves without groups."""
    return values_I if groups_I is None else np.bincount(groups_I, values_I)


def effective_number(weights_G: np.ndarray) -> float:
    """Number of equal weights whose weighted mean varies as much: (sum of w)^2 / sum of w^2 (Kish 1965, sec. 8.2)."""
    return float(weights_G.sum() ** 2 / np.square(weights_G).sum())


def errors(items: Items) -> dict[str, Any]:
    """Fields of a `MetricResult` that describe how certain the mean of the items is."""
    return {
        "stderr": items.stderr,
        "clusters": items.documents,
        "degrees_of_freedom": items.degrees_of_freedom,
        "unit": items.unit,
        "scale": "share" if items.are_right_or_wrong else "linear",
    }


def compare(model: Items, parent: Items) -> Difference:
    """Difference and ratio of two models' means over the same items in the same order."""
    assert len(model.values) == len(parent.values)
    assert (model.weights, model.groups) == (parent.weights, parent.groups)
    apart_I = np.asarray(model.values, float) - np.asarray(parent.values, float)
    difference = model.mean - parent.mean
    stderr = model.error(apart_I - difference)
    better, worse, p_value = _split(model, parent) or (None, None, None)
    spread = spread_of_difference(stderr, better, worse, model.clusters)
    low, high = interval(difference, spread, model.degrees_of_freedom) or (None, None)
    ratio, ratio_stderr = _ratio(model, parent)
    return Difference(
        difference=difference,
        stderr=stderr,
        low=low,
        high=high,
        ratio=ratio,
        ratio_stderr=ratio_stderr,
        parent=parent.mean,
        items=len(apart_I),
        clusters=model.clusters,
        degrees_of_freedom=model.degrees_of_freedom,
        unit=model.unit,
        better=better,
        worse=worse,
        mcnemar=p_value,
    )


def compare_exponentials(model: Items, parent: Items) -> Difference:
    """Difference and ratio of the exponentials of two means: of perplexities, if the items are losses.

    The interval of the difference is that of the difference in means, as perplexities: it holds 0 exactly if that one
    does. Standard errors are to first order (delta method): d exp(mean) = exp(mean) d mean.
    """
    logs = compare(model, parent)
    values = exponential(model.mean), exponential(parent.mean)
    residuals_I, parent_residuals_I = (np.asarray(items.values, float) - items.mean for items in (model, parent))
    ratio = exponential(logs.difference)
    return logs.model_copy(
        update={
            "difference": values[0] - values[1],
            "stderr": model.error(values[0] * residuals_I - values[1] * parent_residuals_I),
            "low": None if logs.low is None else change(logs.low, values[1]),
            "high": None if logs.high is None else change(logs.high, values[1]),
            "ratio": ratio,
            "ratio_stderr": None if logs.stderr is None else ratio * logs.stderr,
            "parent": values[1],
            "scale": "log",
        }
    )


def exponential(mean: float) -> float:
    """Exponential that does not overflow: a perplexity from a loss in nats."""
    return math.exp(min(mean, LOG_MAX))


def change(log_ratio: float, value: float) -> float:
    """Change of `value` when its logarithm changes by `log_ratio`."""
    return value * math.expm1(min(log_ratio, LOG_MAX))


def _ratio(model: Items, parent: Items) -> tuple[float | None, float | None]:
    """Ratio of the means and its standard error, to first order."""
    if parent.mean <= 0:
        return None, None
    ratio = model.mean / parent.mean
    residuals_I = (np.asarray(model.values, float) - ratio * np.asarray(parent.values, float)) / parent.mean
    return ratio, model.error(residuals_I)


def _split(model: Items, parent: Items) -> tuple[int, int, float | None] | None:
    """Items that only the model gets right, items that only the parent gets right, and McNemar's p-value.

    No p-value where items count unequally or together.
    """
    if not (model.are_right_or_wrong and parent.are_right_or_wrong):
        return None
    better = sum(m > p for m, p in zip(model.values, parent.values, strict=True))
    worse = sum(m < p for m, p in zip(model.values, parent.values, strict=True))
    is_plain = model.weights is None and model.documents in (None, len(model.values))
    return better, worse, mcnemar(better, worse) if is_plain else None


def mcnemar(better: int, worse: int) -> float:
    """Two-sided p-value of McNemar's exact test: of a split at least as uneven, under a fair coin."""
    from scipy.special import bdtr

    return min(1.0, 2 * float(bdtr(min(better, worse), better + worse, 0.5)))


def interval(
    value: float, stderr: float | None, degrees_of_freedom: float, confidence: float = CONFIDENCE
) -> tuple[float, float] | None:
    """Two-sided Student's t interval around a mean; None without a standard error."""
    if stderr is None:
        return None
    reach = student_t(confidence, degrees_of_freedom) * stderr
    return value - reach, value + reach


def share_interval(
    share: float,
    stderr: float | None,
    units: float,
    degrees_of_freedom: float,
    confidence: float = CONFIDENCE,
) -> tuple[float, float] | None:
    """Two-sided interval of a share of items that are right or wrong; None without a standard error.

    That of Wilson (1927), which stays within 0 and 1, and is wide where few items are all right or all wrong, with
    Student's t for the normal quantile and the effective number of items: that at which independent items have this
    standard error (Korn and Graubard 1998). Where no spread is seen, it is `units`, the number of independent units.
    """
    if stderr is None:
        return None
    number = share * (1 - share) / stderr**2 if stderr else units
    t = student_t(confidence, degrees_of_freedom)
    center = (share + t * t / (2 * number)) / (1 + t * t / number)
    reach = t / (1 + t * t / number) * math.sqrt(share * (1 - share) / number + t * t / (4 * number**2))
    return max(0.0, center - reach), min(1.0, center + reach)


def spread_of_difference(stderr: float | None, better: int | None, worse: int | None, units: int) -> float | None:
    """Standard error that the interval of a difference is made from, by that of the differences between items.

    Where two models answer all of some questions alike, none of these differences says how often they would not. It is
    then that of one more answer that only either of them gets right (Bonett and Price 2012, Eq. 2).
    """
    return math.sqrt(2) / (units + 2) if stderr == 0 and better == worse == 0 else stderr


def mean_of_runs(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean of independent runs, and half the width of its 95 % interval by Student's t; None for a single run."""
    mean = statistics.mean(values)
    if len(values) == 1:
        return mean, None
    return mean, student_t(CONFIDENCE, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))


def student_t(confidence: float, degrees_of_freedom: float) -> float:
    """Half-width of the central interval of Student's t that has the probability `confidence`."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees_of_freedom, (1 + confidence) / 2))
