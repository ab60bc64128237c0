"""SparseGPT (Frantar & Alistarh 2023): column by column, and later columns make up for what is lost.

With H = X X^T + damping mean(diag) I over the calibration tokens, and U the upper Cholesky factor of H^-1, a weight of
column c scores w^2 / U_cc^2: what its loss costs if the columns after it are refitted. When it goes, every later weight
d of its row loses e U_cd, with e = w / U_cc. A constant factor of H, such as the paper's 2, changes nothing.
"""

# O output, I input, C columns of a block, G columns of a group

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from minitron_cli import stopping
from minitron_cli.figures import Figure
from minitron_cli.sparse.metrics.base import InputSums, Needs, Sparse, SparseMetric, first_lost
from minitron_cli.sparse.pattern import Pattern, highest

if TYPE_CHECKING:
    from torch import Tensor

MORE_DAMPING = 10.0  # times as much, where H is not positive definite in floating point


class SparseGPT(SparseMetric):
    """What the loss of a weight costs if later ones make up for it, which they do (Frantar & Alistarh 2023)."""

    kind: Literal["sparsegpt"] = "sparsegpt"
    damping: float = Field(0.01, gt=0)
    """Number added to the diagonal of the second moments, as a share of its mean."""
    block: int = Field(128, ge=1)
    """Columns that are pruned together. A share of zeros holds for every such block over all rows."""
    figure: ClassVar[Figure] = Figure("cost of the loss after refitting")
    needs: ClassVar[Needs] = "second_moments"

    def sparse(
        self, weight_OI: "Tensor", inputs: InputSums | None, pattern: Pattern, lost_OI: "Tensor | None" = None
    ) -> Sparse:
        """Mask and updated weights, in the dtype of the second moments."""
        assert inputs
        assert inputs.gram_II is not None
        factor_II = inverse_factor(inputs.gram_II, self.damping)
        # Transposed, so that the weights of a column are neighbors in memory.
        weight_IO = weight_OI.to(factor_II.dtype).T.contiguous()
        mask_IO = weight_IO.new_ones(weight_IO.shape).bool()
        never_I = inputs.gram_II.diagonal() == 0
        lost_IO = None if lost_OI is None else lost_OI.T.contiguous()
        group = pattern.group or 1
        size = max(self.block // group, 1) * group
        for start in range(0, len(weight_IO), size):
            stopping.raise_if_stopped()
            columns = slice(start, min(start + size, len(weight_IO)))
            lost_CO = None if lost_IO is None else lost_IO[columns]
            _prune_block_(weight_IO, mask_IO[columns], factor_II, never_I, lost_CO, columns, pattern)
        return Sparse(mask_IO.T, weight_IO.T)


def inverse_factor(gram_II: "Tensor", damping: float) -> "Tensor":
    """Upper triangular U with U^T U = H^-1, where H is the second moments with damping.

    With the order of rows and columns reversed, the Cholesky factor of H is an upper triangular R with R R^T = H, and U
    is its inverse: one factorization instead of two, and no inverse of H in between.
    """
    import torch

    mean = gram_II.diagonal().mean()
    added = damping * torch.where(mean > 0, mean, 1.0)
    eye_II = torch.eye(len(gram_II), dtype=gram_II.dtype, device=gram_II.device)
    while True:
        lower_II, failed = torch.linalg.cholesky_ex(gram_II.flip(0, 1) + added * eye_II)
        if not failed:
            return torch.linalg.solve_triangular(lower_II.flip(0, 1), eye_II, upper=True)
        added = added * MORE_DAMPING


def _prune_block_(
    weight_IO: "Tensor",
    mask_CO: "Tensor",
    factor_II: "Tensor",
    never_I: "Tensor",
    lost_CO: "Tensor | None",
    columns: slice,
    pattern: Pattern,
) -> None:
    """Prune some columns one after the other, and update those after them."""
    weight_CO, factor_CC = weight_IO[columns], factor_II[columns, columns]
    pivots_C, never_C = factor_CC.diagonal(), never_I[columns]
    if pattern.group is None:
        scores_CO = first_lost(_scores(weight_CO, pivots_C, never_C), lost_CO)
        mask_CO.copy_(_keep_share(scores_CO, columns.start, pattern))
    errors_CO = weight_CO.new_zeros(weight_CO.shape)
    for c in range(len(weight_CO)):
        if pattern.group and c % pattern.group == 0:
            group = slice(c, c + pattern.group)
            scores_GO = _scores(weight_CO[group], pivots_C[group], never_C[group])
            mask_CO[group] = pattern.keep(first_lost(scores_GO, None if lost_CO is None else lost_CO[group]), 0)
        errors_CO[c] = weight_CO[c].masked_fill(mask_CO[c], 0) / pivots_C[c]
        weight_CO[c].masked_fill_(~mask_CO[c], 0)
        weight_CO[c + 1 :].addr_(factor_CC[c, c + 1 :], errors_CO[c], alpha=-1)
    weight_IO[columns.stop :].addmm_(factor_II[columns, columns.stop :].T, errors_CO, alpha=-1)


def _scores(weight_GO: "Tensor", pivots_G: "Tensor", never_G: "Tensor") -> "Tensor":
    """Cost of each weight; none where the input was zero for every token."""
    return (weight_GO / pivots_G[:, None]).square().masked_fill_(never_G[:, None], 0)


def _keep_share(scores_CO: "Tensor", start: int, pattern: Pattern) -> "Tensor":
    """Mask of a block whose first column is `start`, so that blocks together lose what the whole matrix has to."""
    outputs = scores_CO.shape[1]
    lost = pattern.lost((start + len(scores_CO)) * outputs) - pattern.lost(start * outputs)
    return highest(scores_CO.reshape(1, -1), scores_CO.numel() - lost).reshape(scores_CO.shape)
