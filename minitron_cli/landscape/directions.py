"""Random directions in the space of a model's free weights, and moves along them that leave no trace.

A step of one in weight i has the length s_i: the model is at w + r s * u with a unit vector u, drawn uniformly. Weights
of scale 0 stay where they are and are not counted.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from minitron_cli.distill.schedule import step_seed

Tensors = Mapping[str, Tensor]
Move = Callable[[Tensors, float], None]
"""Puts the weights at the origin plus a multiple of a direction."""
DAMPING = 0.01
"""Part of the mean squared gradient that is added to each, so that no weight has curvature 0."""


@dataclass(frozen=True)
class Coordinates:
    """Weights that are moved, in place, and the length of a step in each."""

    weights: Tensors
    scale: Tensors
    """Of the same names and shapes; 0 for a weight that stays."""

    @cached_property
    def dimension(self) -> int:
        """Number of weights that move."""
        return sum(int(scale.count_nonzero()) for scale in self.scale.values())

    @cached_property
    def log_scale(self) -> float:
        """Logarithm of the volume that a unit cube of these coordinates has in the weights themselves."""
        return math.fsum(float(scale[scale != 0].double().log().sum()) for scale in self.scale.values())

    def direction(self, seed: int, number: int) -> dict[str, Tensor]:
        """Scaled unit vector of this number, the same in every call and on every device."""
        generator = torch.Generator().manual_seed(step_seed(seed, number, 0))
        drawn = {
            name: torch.randn(scale.shape, generator=generator) * (scale != 0).cpu()
            for name, scale in self.scale.items()
        }
        length = norm(drawn)
        return {name: (u / length).to(scale.device) * scale for (name, u), scale in self._pairs(drawn)}

    def _pairs(self, drawn: Tensors) -> Iterator[tuple[tuple[str, Tensor], Tensor]]:
        return zip(drawn.items(), self.scale.values(), strict=True)


def norm(tensors: Tensors) -> float:
    """Euclidean norm of all tensors together."""
    return math.sqrt(math.fsum(float(tensor.double().square().sum()) for tensor in tensors.values()))


@contextmanager
def moving(weights: Tensors) -> Iterator[Move]:
    """Context in which weights can be moved; at its end they have every bit that they had before."""
    origin = {name: weight.detach().clone() for name, weight in weights.items()}

    def move(direction: Tensors, distance: float) -> None:
        for name, step in direction.items():
            weights[name].data.copy_(origin[name].add(step, alpha=distance))

    try:
        yield move
    finally:
        for name, weight in weights.items():
            weight.data.copy_(origin[name])


def plain_scale(weights: Tensors, kept: Tensors) -> dict[str, Tensor]:
    """Steps of length one, and 0 for weights that a mask, by name, has pruned."""
    return {
        name: kept[name].to(weight) if name in kept else torch.ones_like(weight) for name, weight in weights.items()
    }


def filter_scale(
    weights: Tensors, plain: Tensors, rows: Mapping[str, tuple[int, ...]] | None = None
) -> dict[str, Tensor]:
    """Root mean square of each weight's row, so that a direction changes every row by a like share of its norm.

    Filter normalization (Li et al. 2018, "Visualizing the loss landscape of neural nets"), with the row of a matrix,
    the weights of one output, for a filter; a vector is one row. A row of zeros stays: it gives no length. `rows`: dims
    that a row extends over, by name (`row_dims`); the last one unless given.
    """
    rows = rows or {}
    return {
        name: plain[name] * _row_rms(weight, plain[name], rows.get(name, (-1,))) for name, weight in weights.items()
    }


def row_dims(module: nn.Module, weight: Tensor) -> tuple[int, ...]:
    """Dims over which the weights of one output extend in a module's weight: all of a filter but its number, and of
    experts in one tensor those that read the stream."""
    if isinstance(module, nn.modules.conv._ConvNd):
        return tuple(range(min(1, weight.ndim - 1), weight.ndim))
    is_inputs_first = weight.ndim > 2 and getattr(module, "is_transposed", False)
    return (-2,) if is_inputs_first else (-1,)


def _row_rms(weight: Tensor, plain: Tensor, dim: tuple[int, ...]) -> Tensor:
    squares, counts = weight.detach().square().sum(dim, keepdim=True), plain.count_nonzero(dim)
    return (squares / counts.reshape(squares.shape).clamp(min=1)).sqrt()


def curvature_scale(squared_gradients: Tensors, plain: Tensors) -> dict[str, Tensor]:
    """1 / sqrt(d), with d the mean squared gradient of each weight, damped: the diagonal that Adam divides by.

    Along u / sqrt(d) the radii of a basin whose axes are those of the weights are alike, so that more directions carry
    the mean. The volume is that of the plain weights once -1/2 sum log d is added (`Coordinates.log_scale`).
    """
    count = sum(int(scale.count_nonzero()) for scale in plain.values())
    mean = math.fsum(float((squared_gradients[name] * scale).double().sum()) for name, scale in plain.items()) / count
    floor = DAMPING * mean or 1.0
    return {name: scale / (squared_gradients[name] + floor).sqrt() for name, scale in plain.items()}
