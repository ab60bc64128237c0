"""Radii, sharpness and lines of a loss over weights. The weights have all their bits again after each of them."""

import math
from collections.abc import Callable, Sequence

from torch import Tensor

from minitron_cli import progress
from minitron_cli.landscape.directions import Coordinates, Tensors, moving, norm
from minitron_cli.landscape.plane import Plane
from minitron_cli.landscape.volume import first_radius

Loss = Callable[[], float]
"""Loss of the weights as they are."""


def radii(loss: Loss, coordinates: Coordinates, cutoff: float, numbers: Sequence[int], seed: int) -> list[float]:
    """Distance along the random direction of each number at which the loss has risen by `cutoff`."""
    base, found = loss(), list[float]()
    with moving(coordinates.weights) as move, progress.track("radii", len(numbers), "directions") as advance:
        for number in numbers:
            direction = coordinates.direction(seed, number)

            def rise(distance: float, direction: dict[str, Tensor] = direction) -> float:
                move(direction, distance)
                return loss() - base

            found.append(first_radius(rise, cutoff, found[-1] if found else 1.0))
            advance(radius=found[-1])
    return found


def sharpness(loss: Loss, weights: Tensors, gradient: Tensors, radius: float) -> float:
    """L(w + radius g / |g|) - L(w): the rise after a step along the gradient (Foret et al. 2021, eq. 2)."""
    base, length = loss(), norm(gradient)
    if length == 0:
        return 0.0
    with moving(weights) as move:
        move(gradient, radius / length)
        return loss() - base


def line(loss: Loss, weights: Tensors, other: Tensors, points: int) -> list[float]:
    """Loss at evenly spaced points on the line from `weights` to `other`, both included."""
    with moving(weights) as move:
        step = {name: other[name] - weight.detach() for name, weight in weights.items()}
        found = []
        for i in range(points):
            move(step, i / (points - 1))
            found.append(loss())
    return found


def plane_row(loss: Loss, weights: Tensors, plane: Plane, b: float, shares: Sequence[float]) -> list[float]:
    """Loss at the points (a, b) of a plane through `weights`, for each share a."""
    found = []
    with moving(weights) as move:
        for a in shares:
            move(plane.step(a, b), 1.0)
            found.append(loss())
    return found


def barrier(losses: Sequence[float]) -> float:
    """Largest loss on a line minus the mean of its ends; infinity if the loss is not finite somewhere."""
    return max(losses) - (losses[0] + losses[-1]) / 2 if all(map(math.isfinite, losses)) else math.inf
