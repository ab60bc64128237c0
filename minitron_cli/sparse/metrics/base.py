"""What a metric is: from a matrix, what is known of its inputs, and a pattern, to the weights that stay."""

# O output, I input

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

from minitron_cli.figures import Figure
from minitron_cli.spec import Spec

if TYPE_CHECKING:
    from torch import Tensor

    from minitron_cli.sparse.pattern import Pattern

Needs = Literal["nothing", "squares", "second_moments"]
"""What a metric has to know of a matrix's inputs: nothing, the sum of squares of each, or the sums of all products."""


@dataclass(frozen=True, eq=False)
class InputSums:
    """Sums over the calibration tokens x that a matrix reads, as far as a metric needs them."""

    squares_I: "Tensor"
    """Sum of x_i^2."""
    gram_II: "Tensor | None" = None
    """Sum of x x^T; None unless second moments are needed."""


class Sparse(NamedTuple):
    """A matrix with zeros."""

    mask_OI: "Tensor"
    """Whether each weight stays, bool."""
    weight_OI: "Tensor | None" = None
    """Weights that were updated, pruned ones being zero; None where those that stay keep their values."""


def first_lost(scores: "Tensor", lost: "Tensor | None") -> "Tensor":
    """Scores, none of them negative, with those of the weights that are pruned already below all others."""
    return scores if lost is None else scores.masked_fill(lost, -1)


def largest(weight_OI: "Tensor", pattern: "Pattern", axis: int | None, lost_OI: "Tensor | None") -> "Tensor":
    """Mask of the largest weights, where the pattern holds along an axis (None: of the matrix as a whole).

    Their bits without the sign are integers of the same order, compared faster.
    """
    import torch

    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    sizes_OI = weight_OI.abs().view(integers[weight_OI.itemsize])
    return pattern.keep(first_lost(sizes_OI, lost_OI), axis)


class SparseMetric(Spec, ABC):
    """Base of a metric: a kind, what it needs, and how it prunes one matrix."""

    kind: str
    figure: ClassVar[Figure]
    """Title of the score."""
    needs: ClassVar[Needs]
    is_share_of_line: ClassVar[bool] = False
    """Whether a share of zeros is taken of every output's weights; otherwise it holds for the matrix as a whole."""

    @abstractmethod
    def sparse(
        self, weight_OI: "Tensor", inputs: "InputSums | None", pattern: "Pattern", lost_OI: "Tensor | None" = None
    ) -> Sparse:
        """The matrix with the pattern. `inputs` is given unless the metric needs nothing.

        `lost_OI` says which weights are pruned already, bool: they stay so, as the first of those that go.
        """

    def axis(self, pattern: "Pattern", inputs: int) -> int | None:
        """Axis along which the pattern holds, given that of the inputs of a stored matrix; None: as a whole."""
        return inputs if pattern.group or self.is_share_of_line else None

    def largest(self, weight_OI: "Tensor", pattern: "Pattern", lost_OI: "Tensor | None" = None) -> "Tensor":
        """Mask of the largest weights among those that the metric compares with each other."""
        return largest(weight_OI, pattern, self.axis(pattern, 1), lost_OI)
