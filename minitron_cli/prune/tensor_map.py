"""How one tensor of the child is made from one tensor of the parent: all that a plan says of it, computed once.

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

DimMap = Tensor | None
"""Int64 indices that select from a dim, an fp32 matrix [size, kept] that multiplies it, or None: the dim is whole.

A matrix keeps directions of the residual stream; an index is a column of such a matrix with a single 1.
"""


@dataclass(frozen=True, eq=False)
class MergedRows:
    """Pruned query heads that are merged into kept ones (`head_residual`): row r becomes r + factor (r - other)."""

    other_K: Tensor
    """For each kept row, the pruned row merged into it; its own index if none."""
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
    dims: tuple[DimMap, ...]
    """Per dim of the source, what is kept of it."""
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
        return cls(source, name, shape, _dims(plan, source, match), _merged(plan, match), norm, _rescale(plan, match))

    @property
    def mixes_rows(self) -> bool:
        """Whether every row of the child takes from all rows of the parent."""
        return is_matrix(self.dims[0])

    @property
    def row_elements(self) -> int:
        """Elements in one row of the child's tensor."""
        return math.prod(self.shape[1:])

    def of_rows(self, rows: DimMap, merged_K: Tensor | None = None) -> "TensorMap":
        """The same map for a block of the source's rows; positions count from the block's first row."""
        assert (self.merged is None) == (merged_K is None)
        merged = None if self.merged is None or merged_K is None else replace(self.merged, other_K=merged_K)
        return replace(self, dims=(rows, *self.dims[1:]), merged=merged)


def is_matrix(kept: DimMap) -> bool:
    """Whether a dim is multiplied by directions rather than selected from."""
    return kept is not None and kept.is_floating_point()


def _dims(plan: PrunePlan, source: str, match: Match) -> tuple[DimMap, ...]:
    """Kept indices, with the residual stream's directions in place of its channels where a repair has some."""
    dims: list[DimMap] = list(plan.indices(source))
    if HIDDEN in match.layout.dims and match.template not in plan.parent.family.links:
        norm = norm_of(plan.parent.family).get(match.template)
        # A reader of a folded norm takes the norm's gain along; a writer only changes the basis.
        directions = plan.repair.readout_DK(norm.format(**match.at)) if norm else plan.repair.basis_DK
        if directions is not None:
            dims[match.layout.dims.index(HIDDEN)] = directions
    return tuple(dims)


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
    ratio = plan.child.sizes[correction.axis] / plan.parent.sizes[correction.axis]
    return None if ratio == 1 else Rescale(ratio**correction.power, plan.parent.family.offset(match.template))
