"""SparseGPT (Frantar & Alistarh 2023): column by column, and later columns make up for what is lost.

With H = X X^T + damping mean(diag) I over the calibration tokens, and U the upper Cholesky factor of H^-1, a weight of
column c scores w^2 / U_cc^2: what its loss costs if the columns after it are refitted. When it goes, every later weight
d of its row loses e U_cd, with e = w / U_cc. A constant factor of H, such as the paper's 2, changes nothing.
"""

# O output, I input, C columns of a block, G columns of a group

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from minitron_cli import stopping
from minitron_cli.errors import CheckpointError
from minitron_cli.figures import Figure
from minitron_cli.sparse.metrics.base import InputSums, Needs, Sparse, SparseMetric, first_lost
from minitron_cli.sparse.pattern import Pattern, highest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

STEP = 16
"""Columns that are updated one by one; those behind them are updated once for all of these."""
STRIP = 512
"""Columns of a product with a triangular matrix that are computed at once."""
SOLVED = 256
"""Size up to which a matrix is factored by a library."""
MORE_DAMPING = 10.0  # times as much, where H is not positive definite in floating point
MOST_DAMPING = 1e6  # which every sum of products is positive definite with
TOO_LARGE = (
    "the inputs of a matrix are too large to be multiplied with each other: check the checkpoint, or use another metric"
)


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
        pivots_I = factor_II.diagonal().clone()
        factor_II.div_(pivots_I[:, None])  # so that a lost weight, and no quotient, goes to the later ones
        costs_I = pivots_I.square().reciprocal_().masked_fill_(inputs.gram_II.diagonal() == 0, 0)
        # Transposed, so that the weights of a column are neighbors in memory.
        weight_IO = weight_OI.to(factor_II.dtype).T.contiguous()
        mask_IO = weight_IO.new_ones(weight_IO.shape).bool()
        lost_IO = None if lost_OI is None else lost_OI.T.contiguous()
        for columns in self._blocks(len(weight_IO), pattern):
            stopping.raise_if_stopped()
            lost_CO = None if lost_IO is None else lost_IO[columns]
            _prune_block_(weight_IO, mask_IO[columns], factor_II, costs_I, lost_CO, columns, pattern)
        return Sparse(mask_IO.T, weight_IO.T)

    def largest(self, weight_OI: "Tensor", pattern: Pattern, lost_OI: "Tensor | None" = None) -> "Tensor":
        """Mask of the largest weights; a share holds for every block, as in a mask of `sparse`."""
        if pattern.group:
            return super().largest(weight_OI, pattern, lost_OI)
        sizes_IO = first_lost(weight_OI.abs(), lost_OI).T
        blocks = self._blocks(len(sizes_IO), pattern)
        import torch

        return torch.cat([_keep_share(sizes_IO[columns], columns.start, pattern) for columns in blocks]).T

    def _blocks(self, columns: int, pattern: Pattern) -> "Iterator[slice]":
        """Columns that are pruned together."""
        group = pattern.group or 1
        size = max(self.block // group, 1) * group
        return (slice(start, min(start + size, columns)) for start in range(0, columns, size))


def inverse_factor(gram_II: "Tensor", damping: float) -> "Tensor":
    """Upper triangular U with U^T U = H^-1, where H is the second moments with damping.

    The damping is raised where H is not positive definite in floating point. CheckpointError if the second moments are
    not finite, or too large to be made so.
    """
    import torch

    if not gram_II.diagonal().isfinite().all():
        raise CheckpointError(TOO_LARGE)
    mean = gram_II.diagonal().mean()
    unit, share = torch.where(mean > 0, mean, 1.0), damping
    while share <= max(MOST_DAMPING, damping):
        damped_II = gram_II.clone()
        damped_II.diagonal().add_(share * unit)
        factor_II = torch.zeros_like(damped_II)
        if _factor_(damped_II, factor_II):
            return factor_II
        share *= MORE_DAMPING
    raise CheckpointError(TOO_LARGE)


def _factor_(damped_II: "Tensor", factor_II: "Tensor") -> bool:
    """Write U into `factor_II`, which is zero; False if H is not positive definite.

    `damped_II` is H on and above the diagonal, and changed. U is the inverse of the upper triangular R with R R^T = H.
    In halves, with H = [[A, B], [B^T, D]] and V the factor of D, P = B V^T is the corner of R. So the factor W of
    A - P P^T is the first block of U, and -W P V its corner. Nearly all of the work are products of halves, at the
    machine's rate, which a library's factorization and inversion do not reach.
    """
    stopping.raise_if_stopped()
    size = len(damped_II)
    if size <= SOLVED:
        return _solved_(damped_II, factor_II)
    first, last = slice(size // 2), slice(size // 2, None)
    if not _factor_(damped_II[last, last], factor_II[last, last]):
        return False
    corner = _product(damped_II[first, last], factor_II[last, last].T)
    left_II = damped_II[first, first]
    for start in range(0, len(left_II), STRIP):
        strip = slice(start, start + STRIP)
        left_II[strip, start:].addmm_(corner[strip], corner[start:].T, alpha=-1)
    if not _factor_(left_II, factor_II[first, first]):
        return False
    corner = _product(corner, factor_II[last, last], is_upper=True)
    factor_II[first, last] = _product(corner.T, factor_II[first, first].T).T.neg_()
    return True


def _product(left: "Tensor", triangle_II: "Tensor", *, is_upper: bool = False) -> "Tensor":
    """Product with a triangular matrix on the right, lower unless `is_upper`, without most of its zeros."""
    found = left.new_empty(left.shape)
    for start in range(0, len(triangle_II), STRIP):
        stop = start + STRIP
        rows = slice(stop) if is_upper else slice(start, None)
        found[:, start:stop] = left[:, rows] @ triangle_II[rows, start:stop]
    return found


def _solved_(damped_II: "Tensor", factor_II: "Tensor") -> bool:
    """The same by one Cholesky factorization: with the order of rows and columns reversed, its factor of H is R."""
    import torch

    lower_II, failed = torch.linalg.cholesky_ex(damped_II.flip(0, 1))
    if failed:
        return False
    eye_II = torch.eye(len(damped_II), dtype=damped_II.dtype, device=damped_II.device)
    factor_II.copy_(torch.linalg.solve_triangular(lower_II.flip(0, 1), eye_II, upper=True))
    return True


def _prune_block_(
    weight_IO: "Tensor",
    mask_CO: "Tensor",
    factor_II: "Tensor",
    costs_I: "Tensor",
    lost_CO: "Tensor | None",
    columns: slice,
    pattern: Pattern,
) -> None:
    """Prune some columns one after the other, and update those after them.

    `factor_II` has ones on its diagonal. `costs_I` is what the square of a weight is multiplied by for its score.
    """
    weight_CO, factor_CC, costs_C1 = weight_IO[columns], factor_II[columns, columns], costs_I[columns, None]
    if pattern.group is None:
        scores_CO = first_lost(weight_CO.square() * costs_C1, lost_CO)
        mask_CO.copy_(_keep_share(scores_CO, columns.start, pattern))
    gone_CO = weight_CO.new_empty(weight_CO.shape)  # the weights that go, as they are then
    each, each_gone = weight_CO.unbind(), gone_CO.unbind()  # once: views take longer than their few numbers
    group = pattern.group or STEP
    step = max(STEP // group, 1) * group
    for start in range(0, len(weight_CO), step):
        stop = min(start + step, len(weight_CO))
        for c in range(start, stop):
            if c % group == 0:
                some = slice(c, c + group)
                if pattern.group:
                    scores_GO = weight_CO[some].square().mul_(costs_C1[some])
                    mask_CO[some] = pattern.keep(first_lost(scores_GO, None if lost_CO is None else lost_CO[some]), 0)
                gone_CO[some] = ~mask_CO[some]
            each_gone[c].mul_(each[c])
            if c + 1 < stop:
                weight_CO[c + 1 : stop].addr_(factor_CC[c, c + 1 : stop], each_gone[c], alpha=-1)
        weight_CO[stop:].addmm_(factor_CC[start:stop, stop:].T, gone_CO[start:stop], alpha=-1)
    weight_CO.mul_(mask_CO)
    weight_IO[columns.stop :].addmm_(factor_II[columns, columns.stop :].T, gone_CO, alpha=-1)


def _keep_share(scores_CO: "Tensor", start: int, pattern: Pattern) -> "Tensor":
    """Mask of a block whose first column is `start`, so that blocks together lose what the whole matrix has to."""
    outputs = scores_CO.shape[1]
    lost = pattern.lost((start + len(scores_CO)) * outputs) - pattern.lost(start * outputs)
    return highest(scores_CO.reshape(1, -1), scores_CO.numel() - lost).reshape(scores_CO.shape)
