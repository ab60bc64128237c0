"""The plane through three models, in the coordinates of its first two sides. Knows no loss."""

import math
from dataclasses import dataclass

from torch import Tensor

from minitron_cli.errors import InputError
from minitron_cli.landscape.directions import Tensors

LEAST_HEIGHT = 1e-5  # of a triangle, over its base, below which it is a line


@dataclass(frozen=True)
class Plane:
    """Weights w + a u + b v: the first model at (a, b) = (0, 0), the second at (1, 0), the third at (0, 1)."""

    u: Tensors
    v: Tensors

    @classmethod
    def through(cls, first: Tensors, second: Tensors, third: Tensors) -> "Plane":
        """Plane through the weights of three models, by name."""
        u, v = ({name: other[name].detach() - w.detach() for name, w in first.items()} for other in (second, third))
        return cls(u, v)

    def step(self, a: float, b: float) -> dict[str, Tensor]:
        """Step from the first model to the point (a, b)."""
        return {name: a * u + b * self.v[name] for name, u in self.u.items()}

    def corners(self, scale: Tensors) -> tuple[tuple[float, float], ...]:
        """Places of the models in an orthonormal basis of the plane whose first axis is u (Garipov et al. 2018).

        Lengths are measured in steps of `scale` in each weight, as radii are; weights of scale 0 do not count.
        InputError if the models lie on a line.
        """
        squared_base = _inner(self.u, self.u, scale)
        share = _inner(self.u, self.v, scale) / squared_base if squared_base else 0.0
        rest = {name: v - share * self.u[name] for name, v in self.v.items()}
        base, height = math.sqrt(squared_base), math.sqrt(_inner(rest, rest, scale))
        if not base or height <= LEAST_HEIGHT * base:
            raise InputError("the three models lie on a line, so there is no plane: give three that differ")
        return (0.0, 0.0), (base, 0.0), (share * base, height)


def _inner(a: Tensors, b: Tensors, scale: Tensors) -> float:
    """Inner product in coordinates of `scale`."""

    def of(name: str) -> float:
        moves = scale[name] != 0
        return float((a[name][moves] / scale[name][moves] * (b[name][moves] / scale[name][moves])).double().sum())

    return math.fsum(of(name) for name in a)


def shares(points: int) -> tuple[float, ...]:
    """Multiples of a side at which the loss is measured: `points` from 0 to 1, and half as many beyond each end."""
    beyond = points // 2
    return tuple(i / (points - 1) for i in range(-beyond, points + beyond))
