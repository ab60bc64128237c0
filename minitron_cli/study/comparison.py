"""Differences of two arms paired by seed, and whether an expected order holds. Knows numbers only.

Runs of one seed share calibration blocks and the order of the text, so that their difference varies less than either.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from minitron_cli.evaluate.statistics import CONFIDENCE, student_t

POWER = 0.8
"""Probability with which a difference is to be found."""
ROUNDING = 1e-9
"""Figures, in nats of about 1, that are closer are the same."""


@dataclass(frozen=True)
class Paired:
    """Differences between two arms, one for each seed."""

    differences: tuple[float, ...]
    """Figure of the arm that is expected higher, minus that of the other."""

    @property
    def mean(self) -> float:
        """Mean difference."""
        return statistics.mean(self.differences)

    @property
    def stderr(self) -> float:
        """Standard error of the mean; 0 of one difference, of which nothing is known."""
        if len(self.differences) < 2:
            return 0.0
        return statistics.stdev(self.differences) / math.sqrt(len(self.differences))

    @property
    def half_width(self) -> float:
        """Half the 95 % interval of the mean, by Student's t."""
        return student_t(CONFIDENCE, len(self.differences) - 1) * self.stderr

    def smallest_seen(self, orders: int) -> float:
        """Difference that so many seeds find with a probability of `POWER`, if their standard error is this one.

        It is found where its p-value is below 0.05 after Holm's adjustment for so many orders, of which it is the only
        one to differ: at his first step. The probability is that of the noncentral t distribution (Cohen 1988, ch. 2).
        """
        from scipy.special import nctdtrinc

        freedom = len(self.differences) - 1
        needed = student_t(1 - (1 - CONFIDENCE) / orders, freedom)
        return float(nctdtrinc(freedom, 1 - POWER, needed)) * self.stderr

    @property
    def as_expected(self) -> int:
        """Number of seeds with the expected order."""
        return sum(difference > 0 for difference in self.differences)

    @property
    def is_drawn(self) -> bool:
        """Whether there are seeds that differ by more than rounding. If not, as of one run or of arms without a random
        choice, nothing can be said of other seeds."""
        return differ(self.differences)

    @property
    def p_value(self) -> float:
        """Two-sided p-value of a difference of zero, by the paired t-test; 1 if no seed differs from another."""
        if not self.is_drawn:
            return 1.0
        from scipy.stats import t

        return float(2 * t.sf(abs(self.mean) / self.stderr, len(self.differences) - 1))


def differ(values: Sequence[float]) -> bool:
    """Whether some of the values differ by more than rounding."""
    return any(not math.isclose(value, values[0], rel_tol=ROUNDING, abs_tol=ROUNDING) for value in values)


def regret(before: Sequence[float], after: Sequence[float]) -> float:
    """Figure after training of the candidate that is lowest before it, minus the lowest figure after training."""
    chosen = min(range(len(before)), key=before.__getitem__)
    return after[chosen] - min(after)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for all of them being looked at (Holm 1979), in their order."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted
