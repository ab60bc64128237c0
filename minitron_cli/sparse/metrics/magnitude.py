"""Magnitude: the smallest weights go."""

from typing import TYPE_CHECKING, ClassVar, Literal

from minitron_cli.figures import Figure
from minitron_cli.sparse.metrics.base import InputSums, Needs, Sparse, SparseMetric, first_lost

if TYPE_CHECKING:
    from torch import Tensor

    from minitron_cli.sparse.pattern import Pattern


class Magnitude(SparseMetric):
    """|w|, compared within groups, or within the whole matrix. Needs no text (Han et al. 2015)."""

    kind: Literal["magnitude"] = "magnitude"
    figure: ClassVar[Figure] = Figure("magnitude")
    needs: ClassVar[Needs] = "nothing"

    def sparse(
        self, weight_OI: "Tensor", inputs: InputSums | None, pattern: "Pattern", lost_OI: "Tensor | None" = None
    ) -> Sparse:
        """Mask of the largest weights."""
        return Sparse(largest(weight_OI, pattern, self.axis(pattern, 1), lost_OI))


def largest(weight_OI: "Tensor", pattern: "Pattern", axis: int | None, lost_OI: "Tensor | None") -> "Tensor":
    """Mask of the largest weights, where the pattern holds along an axis (None: of the matrix as a whole).

    Their bits without the sign are integers of the same order, compared faster.
    """
    import torch

    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    sizes_OI = weight_OI.abs().view(integers[weight_OI.itemsize])
    return pattern.keep(first_lost(sizes_OI, lost_OI), axis)
