"""Stored results as values with intervals at any confidence, for gates and reports."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from minitron_cli.evaluate.statistics import (
    CONFIDENCE,
    change,
    exponential,
    interval,
    share_interval,
    spread_of_difference,
)
from minitron_cli.results.evaluation import Difference, MetricResult


@dataclass(frozen=True)
class Estimate:
    """Value that is a rising function of a quantity, of a mean or its logarithm, whose interval is Student's t or, of a
    share, Wilson's."""

    value: float | None
    center: float
    """The quantity."""
    stderr: float | None
    """Standard error of the quantity."""
    degrees_of_freedom: float
    shown: Callable[[float], float] = float
    """Function that gives the value from the quantity."""
    share_of: float | None = None
    """Number of independent units that the value is the share of; None unless it is a share."""
    shares: "tuple[Estimate, Estimate] | None" = None
    """The two independent shares that the value is the difference of; None unless it is one."""

    def interval(self, confidence: float = CONFIDENCE) -> tuple[float, float] | None:
        """Two-sided interval of the value; None without a standard error.

        That of a difference of shares is made of theirs (Newcombe 1998, method 10), as a share of 0 or 1 has an error
        of 0.
        """
        if self.shares is not None:
            return _newcombe(*self.shares, confidence)
        if self.share_of is not None:
            return share_interval(self.center, self.stderr, self.share_of, self.degrees_of_freedom, confidence)
        ends = interval(self.center, self.stderr, self.degrees_of_freedom, confidence)
        return ends and (self.shown(ends[0]), self.shown(ends[1]))


UNKNOWN = Estimate(None, 0.0, None, 0.0)


def of_metric(found: MetricResult) -> Estimate:
    """Value of one metric."""
    degrees = _degrees(found.degrees_of_freedom, found.clusters or found.n)
    if found.value is None:
        return UNKNOWN
    if found.scale == "log":
        return Estimate(found.value, math.log(found.value), _relative(found.stderr, found.value), degrees, exponential)
    units = found.clusters if found.unit == "document" else found.n
    return Estimate(found.value, found.value, found.stderr, degrees, share_of=units if found.scale == "share" else None)


def of_difference(found: Difference) -> Estimate:
    """Difference of a model from its parent on the same items."""
    degrees = _degrees(found.degrees_of_freedom, found.clusters)
    if found.scale == "log":
        ratio = of_ratio(found)
        return Estimate(found.difference, ratio.center, ratio.stderr, degrees, _from_log_ratio(found.parent or 0.0))
    return Estimate(found.difference, found.difference, _spread(found), degrees)


def of_ratio(found: Difference) -> Estimate:
    """Ratio of a model's value to its parent's on the same items."""
    degrees = _degrees(found.degrees_of_freedom, found.clusters)
    if found.ratio is None:
        return UNKNOWN
    if found.scale == "log":
        stderr = _relative(found.ratio_stderr, found.ratio)
        return Estimate(found.ratio, math.log(found.ratio), stderr, degrees, exponential)
    spread = _spread(found)
    stderr = spread / found.parent if spread and found.parent and not found.stderr else found.ratio_stderr
    return Estimate(found.ratio, found.ratio, stderr, degrees)


def unpaired_difference(own: MetricResult, other: MetricResult) -> Estimate:
    """Difference of two values, taken as independent; on the same items this overstates the error."""
    first, second = of_metric(own), of_metric(other)
    if first.value is None or second.value is None:
        return UNKNOWN
    center, error, degrees = _apart(first, second)
    if own.scale == other.scale == "log":
        return Estimate(first.value - second.value, center, error, degrees, _from_log_ratio(second.value))
    shares = (first, second) if first.share_of and second.share_of else None
    return Estimate(center, center, error, degrees, shares=shares)


def unpaired_ratio(own: MetricResult, other: MetricResult) -> Estimate:
    """Ratio of two values, taken as independent, to first order; no value unless the other one is positive."""
    first, second = of_metric(own), of_metric(other)
    if first.value is None or second.value is None or second.value <= 0:
        return UNKNOWN
    ratio = first.value / second.value
    center, error, degrees = _apart(first, second)
    if own.scale == other.scale == "log":
        return Estimate(ratio, center, error, degrees, exponential)
    error = _hypot(first.stderr, None if second.stderr is None else ratio * second.stderr)
    return Estimate(ratio, ratio, None if error is None else error / second.value, degrees)


def _newcombe(first: Estimate, second: Estimate, confidence: float) -> tuple[float, float] | None:
    own, other = first.interval(confidence), second.interval(confidence)
    if own is None or other is None:
        return None
    (low, high), (other_low, other_high) = own, other
    apart = first.center - second.center
    down = math.hypot(first.center - low, other_high - second.center)
    up = math.hypot(high - first.center, second.center - other_low)
    return apart - down, apart + up


def _spread(found: Difference) -> float | None:
    """Standard error that the interval of a difference is made from."""
    return spread_of_difference(found.stderr, found.better, found.worse, found.clusters)


def _apart(first: Estimate, second: Estimate) -> tuple[float, float | None, float]:
    """Difference of two quantities, its standard error and the degrees of freedom of the less certain one."""
    degrees = min(first.degrees_of_freedom, second.degrees_of_freedom)
    return first.center - second.center, _hypot(first.stderr, second.stderr), degrees


def _hypot(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else math.hypot(first, second)


def _relative(stderr: float | None, value: float) -> float | None:
    """Standard error of the logarithm, from which the value's was made to first order."""
    return None if stderr is None else stderr / value


def _from_log_ratio(parent: float) -> Callable[[float], float]:
    return lambda log_ratio: change(log_ratio, parent)


def _degrees(stored: float | None, clusters: int | None) -> float:
    """Degrees of freedom of an error; where the number of units is not known, that of a normal distribution."""
    return stored if stored is not None else clusters - 1.0 if clusters else math.inf
