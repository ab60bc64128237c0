"""Weight magnitude of channels and layers. Needs no data and no model in memory; reads one tensor at a time."""

# R rows, K columns of a matrix; P the norms; C channel of an axis

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from minitron_cli import progress
from minitron_cli.model.axes import SCORED
from minitron_cli.model.layout import Dim
from minitron_cli.model.shape import Shape
from minitron_cli.scores.metric import Magnitude
from minitron_cli.scores.scores import Scores

NORMS = (Magnitude(norm="l1"), Magnitude(norm="l2"))
BLOCK_ELEMENTS = 16 << 20


@torch.no_grad()
def magnitude(read: Callable[[str], Tensor], shape: Shape) -> Scores:
    """L1 and L2 norms of the weights of every head, neuron, expert, hidden channel and layer.

    A channel's weights are the rows of the matrices that produce it and the columns of those that consume it: in
    q_proj and o_proj for a head, gate, up and down_proj for a neuron, every matrix for a hidden channel. A layer's
    are all its matrices; an expert's as well, with its row of the router. Norm weights and biases are left out.
    """
    matrices = [name for name, size in shape.tensors().items() if len(size) == 2 and not name.endswith("bias")]
    axes = [axis for axis in (*SCORED, "layer") if axis in shape.sizes]
    sums = {axis: torch.zeros(len(NORMS), *_rows(shape, axis), dtype=torch.float64) for axis in axes}
    with progress.track("magnitude", total=len(matrices), unit="tensors") as step:
        for name in matrices:
            _add_(sums, shape, name, read(name))
            step()
    return Scores({norm.key(axis): _root(norm, sums[axis][p]) for axis in sums for p, norm in enumerate(NORMS)})


def _rows(shape: Shape, axis: str) -> tuple[int, ...]:
    return tuple(shape.sizes[owner] for owner in (*shape.family.owners(axis), axis))


def _root(norm: Magnitude, sums: Tensor) -> Tensor:
    return (sums.sqrt() if norm.norm == "l2" else sums).float()


def _add_(sums: dict[str, Tensor], shape: Shape, name: str, matrix_RK: Tensor) -> None:
    match = shape.family.match(name)
    by_dim = powers(matrix_RK)
    for axis in match.at:  # the whole matrix belongs to one entry of the axis
        _owned(sums, shape, axis, match.at)[:, match.at[axis]] += by_dim[0].sum(1)
    for d, sums_PK in enumerate(by_dim):
        for axis in match.layout.axes(d).intersection(sums):
            target = _owned(sums, shape, axis, match.at)
            target += _by_channel(sums_PK, match.layout.dims[d], axis, shape)


def _owned(sums: dict[str, Tensor], shape: Shape, axis: str, at: Mapping[str, int]) -> Tensor:
    """Sums [P, C] of an axis in one layer, in one of its experts, or in the whole model; a view."""
    target = sums[axis]
    for owner in shape.family.owners(axis):
        target = target[:, at[owner]]
    return target


def powers(matrix_RK: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of |w| and w^2 over each row [P, R] and over each column [P, K], computed in blocks of rows."""
    rows, columns_PK = [], torch.zeros(len(NORMS), matrix_RK.shape[1], dtype=torch.float64)
    for block_RK in matrix_RK.split(max(1, BLOCK_ELEMENTS // matrix_RK.shape[1])):
        sizes_RK = block_RK.float().abs()
        both = sizes_RK, sizes_RK.square()
        rows.append(torch.stack([power.sum(1) for power in both]))
        columns_PK += torch.stack([power.sum(0) for power in both])
    return torch.cat(rows, dim=1).double(), columns_PK


def _by_channel(sums_PK: Tensor, dim: Dim, axis: str, shape: Shape) -> Tensor:
    """Sums of a dim's positions per channel of one axis, [P, C]."""
    total_PC = sums_PK.new_zeros(len(NORMS), shape.sizes[axis])
    sizes = [[f if isinstance(f, int) else shape.sizes[f] for f in section] for section in dim]
    parts = sums_PK.split([math.prod(s) for s in sizes], dim=1)
    for section, size, part in zip(dim, sizes, parts, strict=True):
        if axis in section:
            others = [d + 1 for d, factor in enumerate(section) if factor != axis]
            by_factor = part.unflatten(1, size)
            total_PC += by_factor.sum(others) if others else by_factor
    return total_PC
