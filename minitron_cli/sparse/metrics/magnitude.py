"""Magnitude: the smallest weights go."""

from typing import TYPE_CHECKING, ClassVar, Literal

from minitron_cli.figures import Figure
from minitron_cli.sparse.metrics.base import InputSums, Needs, Sparse, SparseMetric

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
        return Sparse(self.largest(weight_OI, pattern, lost_OI))
