"""Volume of a basin by Monte-Carlo radii. Knows numbers and functions of a distance; no model.

The basin around w is B = {w' : L(w') <= L(w) + cutoff}. Let r(u) be the distance from w to the end of B along the unit
vector u; each ray is assumed to leave B once. With n weights (Huang et al. 2020, "Understanding generalization through
visualizations"),

    V = omega_n E_u[r(u)^n],    omega_n = pi^(n/2) / Gamma(1 + n/2),

so that log V = log omega_n + log mean exp(n log r_i) over random directions u_i. No number but the logarithm is ever
formed: r^n leaves the range of a float with a few hundred weights.

The mean is dominated by the longest radii. Where few directions carry it, the estimate is a lower bound that is far too
low, and the effective number of directions, (sum w)^2 / sum w^2 with w_i = r_i^n, says so.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

from minitron_cli.errors import InputError

ENOUGH_DIRECTIONS = 10
"""Effective number of directions below which an estimate cannot be trusted."""
PRECISION = 1e-4
"""Relative error of the rise at the radius that is returned."""
EVALUATIONS = 40
"""Most evaluations after the end of the basin was bracketed; a few suffice for a smooth rise."""
GROWTH = 2.0
"""Factor between two radii that are tried to bracket it."""
LONGEST, SHORTEST = 1e6, 1e-9
"""Radii beyond which none is looked for: the model is at no minimum, or has no weights that matter."""

Rise = Callable[[float], float]
"""Loss at a distance along a direction, minus the loss at distance 0."""


class Volume(NamedTuple):
    """Estimated volume of a basin in n dimensions."""

    log_volume: float
    """Natural logarithm of the volume, in units of length^n."""
    dimension: int
    median_radius: float
    effective_directions: float

    @classmethod
    def of(cls, radii: Sequence[float], dimension: int, log_scale: float = 0.0) -> "Volume":
        """Volume from the radii along random directions.

        `log_scale` is the logarithm of the volume of the unit cube of the coordinates that the radii are measured in.
        """
        logs = [dimension * math.log(radius) for radius in radii]
        largest = max(logs)
        weights = [math.exp(log - largest) for log in logs]
        log_mean = largest + math.log(math.fsum(weights) / len(weights))
        effective = math.fsum(weights) ** 2 / math.fsum(weight**2 for weight in weights)
        log_volume = log_ball(dimension) + log_mean + log_scale
        return cls(log_volume, dimension, statistics.median(radii), effective)

    @property
    def is_trusted(self) -> bool:
        """Whether enough directions carry the estimate."""
        return self.effective_directions >= ENOUGH_DIRECTIONS


def log_ball(n: int) -> float:
    """Logarithm of the volume of the unit ball in n dimensions."""
    return n / 2 * math.log(math.pi) - math.lgamma(1 + n / 2)


def log_ratio(a: Volume, b: Volume) -> float:
    """log(V_a / V_b). InputError for volumes of unlike dimension, whose units are not the same."""
    require_same_dimension({"one": a.dimension, "the other": b.dimension})
    return a.log_volume - b.log_volume


def require_same_dimension(dimensions: dict[str, int]) -> None:
    """Raise InputError unless all models, by name, have the same number of free weights."""
    (first, n), *others = dimensions.items()
    for name, other in others:
        if other != n:
            raise InputError(
                f"{first} has {n:,} free weights and {name} has {other:,}: volumes of unlike dimension do not compare; "
                "give models of one shape with as many zeros, or measure what all keep: --subspace kept"
            )


def first_radius(rise: Rise, cutoff: float, start: float = 1.0) -> float:
    """Distance at which the loss has risen by `cutoff`, to a relative error of the rise of `PRECISION`.

    The end is bracketed from `start` by doubling or halving, then found by interpolating log rise against log
    distance, in which a quadratic is a line; every other step halves the bracket, so that no rise can stall it.
    InputError if there is no such distance.
    """
    low, high = _bracket(rise, cutoff, start)
    for step in range(EVALUATIONS):
        radius = _between(low, high, cutoff, halve=step % 2 == 1)
        found = rise(radius)
        if abs(found - cutoff) <= PRECISION * cutoff:
            return radius
        if found < cutoff:
            low = (radius, found)
        else:
            high = (radius, found)
    return low[0]


Point = tuple[float, float]
"""Distance, and the rise there."""


def _bracket(rise: Rise, cutoff: float, start: float) -> tuple[Point, Point]:
    """Two points, the first below the cutoff, the second at or above it. A loss that is not a number is above."""
    radius, found = start, rise(start)
    below = found < cutoff
    while (found < cutoff) == below:
        before = (radius, found)
        radius *= GROWTH if below else 1 / GROWTH
        if not SHORTEST < radius < LONGEST:
            raise InputError(
                f"in a direction the loss {'does not rise' if below else 'has risen'} by {cutoff:g} within a distance "
                f"of {radius:g}, so there is no basin around the model: train it first, or use another --cutoff"
            )
        found = rise(radius)
    return (before, (radius, found)) if below else ((radius, found), before)


def _between(low: Point, high: Point, cutoff: float, *, halve: bool) -> float:
    """Radius within the bracket, by interpolation where both rises have a logarithm."""
    (near, below), (far, above) = low, high
    share = 0.5
    if not halve and below > 0 and math.isfinite(above):
        share = math.log(cutoff / below) / math.log(above / below)
    return near * (far / near) ** min(max(share, 0.01), 0.99)
