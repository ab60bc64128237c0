"""The way from one tensor of the parent to one of the child: all that a plan says of it, computed once.

`stream.py` reads and writes the bytes, `slicing.py` applies a map to them; neither asks the plan again.
"""

# D hidden of the parent, K kept row, channel or direction

import math
from dataclasses import dataclass, replace

from torch import Tensor

from minitron_cli.checkpoint.reader import Checkpoint
from minitron_cli.model.family import Match
from minitron_cli.model.residual_stream import HIDDEN, norm_of
from minitron_cli.prune.plan import PrunePlan


@dataclass(frozen=True, eq=False)
class MergedRows:
    """Pruned query heads that are merged into kept ones (`head_residual`): row r becomes r + factor (r - other)."""

    other_K: Tensor
    """Pruned row that is merged into each kept row; the kept row itself if none."""
    factor: int


@dataclass(frozen=True, eq=False)
class NormMap:
    """Changes to the weight of a norm over the residual stream, besides selecting from it."""

    offset: float
    """Added to the stored weight to make the gain."""
    is_folded: bool
    """Whether the gain goes into the norm's readers, so that 1 is left."""
    basis_DK: Tensor | None
    """Directions in which the gain is expressed, for a norm that cannot be folded; None where channels are kept."""
    scale: float | None
    """Factor of the gain, for a norm that is rescaled."""


@dataclass(frozen=True)
class Rescale:
    """Keeps the function where a model computes with a pruned size: value + offset is multiplied by a factor."""

    factor: float
    offset: float


@dataclass(frozen=True, eq=False)
class TensorMap:
    """One tensor's way from the parent to the child."""

    source: str
    """Name in the parent."""
    name: str
    """Name in the child."""
    shape: tuple[int, ...]
    """Shape in the child."""
    indices: tuple[Tensor | None, ...]
    """Per dim of the source, the positions to select, int64; None where the dim is whole or multiplied."""
    left_DK: Tensor | None = None
    """Directions of the residual stream, fp32, that multiply dim 0: then every row of the child takes from all rows."""
    right_DK: Tensor | None = None
    """Directions, or a norm's readout, fp32, that multiply the last dim."""
    merged: MergedRows | None = None
    norm: NormMap | None = None
    rescale: Rescale | None = None
    fitted: Checkpoint | None = None
    """Checkpoint that holds the child's numbers under the source's name, where a repair fitted them."""

    @classmethod
    def of(cls, plan: PrunePlan, source: str) -> "TensorMap":
        """Map of a parent's tensor that survives. KeyError if the plan drops it."""
        name, match = plan.child_name(source), plan.parent.family.match(source)
        if name is None:
            raise KeyError(f"the plan drops {source}")
        shape = match.layout.shape(plan.child.sizes)
        norm = _norm_map(plan, source, match)
        if plan.repair.has_fitted(source):
            return cls(source, name, shape, (None,) * len(shape), norm=norm, fitted=plan.repair.fitted)
        indices, left_DK, right_DK = _dims(plan, source, match)
        merged, rescale = _merged(plan, match), _rescale(plan, match)
        return cls(source, name, shape, indices, left_DK, right_DK, merged, norm, rescale)

    def of_rows(self, rows: Tensor | None, merged_K: Tensor | None = None) -> "TensorMap":
        """The same map for a block of the source's rows; positions count from the block's first row."""
        assert (self.merged is None) == (merged_K is None)
        merged = None if self.merged is None or merged_K is None else replace(self.merged, other_K=merged_K)
        return replace(self, indices=(rows, *self.indices[1:]), merged=merged)


def _dims(plan: PrunePlan, source: str, match: Match) -> tuple[tuple[Tensor | None, ...], Tensor | None, Tensor | None]:
    """Indices per dim, and the directions that replace those of the residual stream in the first or in the last dim."""
    indices, dims = plan.indices(source), match.layout.dims
    if HIDDEN not in dims or match.template in plan.parent.family.links:
        return indices, None, None
    norm = norm_of(plan.parent.family).get(match.template)
    # A reader of a folded norm takes the norm's gain along; a writer only changes the basis.
    directions_DK = plan.repair.readout_DK(norm.format(**match.at)) if norm else plan.repair.basis_DK
    if directions_DK is None:
        return indices, None, None
    dim = dims.index(HIDDEN)
    assert dim in (0, len(dims) - 1), "only the first and the last dim can be multiplied"
    indices = (*indices[:dim], None, *indices[dim + 1 :])
    return (indices, directions_DK, None) if dim == 0 else (indices, None, directions_DK)


def _merged(plan: PrunePlan, match: Match) -> MergedRows | None:
    layer, residual = match.at.get("layer"), plan.head_residual
    if residual is None or layer is None or "head" not in match.layout.axes(0):
        return None
    heads_K = residual.partners_LK[layer]
    rows, *_ = match.layout.indices(lambda axis: heads_K if axis == "head" else plan.at(axis, layer), plan.parent.sizes)
    assert rows is not None
    return MergedRows(rows, residual.factor)


def _norm_map(plan: PrunePlan, source: str, match: Match) -> NormMap | None:
    """None for tensors that are no norm over the residual stream with known readers."""
    family, repair = plan.parent.family, plan.repair
    if match.template not in family.links:
        return None
    basis_DK = None if repair.has_fitted(source) else repair.basis_DK
    return NormMap(family.norm_offset, source in repair.gain_D, basis_DK, repair.scales.get(source))


def _rescale(plan: PrunePlan, match: Match) -> Rescale | None:
    correction = plan.parent.family.corrections.get(match.template)
    if correction is None or (correction.if_tied and not plan.parent.is_tied):
        return None
    child, parent = (math.prod(s.sizes[a] for a in correction.axis.split()) for s in (plan.child, plan.parent))
    ratio = child / parent
    return None if ratio == 1 else Rescale(ratio**correction.power, plan.parent.family.offset(match.template))
