"""Wanda (Sun et al. 2023): a weight counts by what it multiplies."""

from typing import TYPE_CHECKING, ClassVar, Literal

from minitron_cli.figures import Figure
from minitron_cli.sparse.metrics.base import InputSums, Needs, Sparse, SparseMetric, first_lost

if TYPE_CHECKING:
    from torch import Tensor

    from minitron_cli.sparse.pattern import Pattern


class Wanda(SparseMetric):
    """|w| times the L2 norm of its input over the calibration tokens, compared within each output (Sun et al. 2023)."""

    kind: Literal["wanda"] = "wanda"
    figure: ClassVar[Figure] = Figure("magnitude times norm of the input")
    needs: ClassVar[Needs] = "squares"
    is_share_of_line: ClassVar[bool] = True

    def sparse(
        self, weight_OI: "Tensor", inputs: InputSums | None, pattern: "Pattern", lost_OI: "Tensor | None" = None
    ) -> Sparse:
        """Mask of the weights with the highest scores; the scores are fp32."""
        assert inputs
        return Sparse(pattern.keep(first_lost(scores(weight_OI, inputs), lost_OI), self.axis(pattern, 1)))


def scores(weight_OI: "Tensor", inputs: InputSums) -> "Tensor":
    """|W_ij| ||X_j||, fp32 [O, I]."""
    return weight_OI.float().abs() * inputs.squares_I.sqrt().float()
