"""Least-squares fit of a matrix of the child to what the parent computes in its place.

With inputs a as the child sees them and wanted outputs t, over the calibration tokens,

    C = s C0 + (T - s C0 G) (G + ridge)^-1        G = sum a a^T,   T = sum t a^T,   s = <C0, T> / <C0 G, C0>

minimizes sum |t - C a|^2 + ridge |C - s C0|^2. The ridge pulls toward the plainly pruned matrix C0, not toward zero,
and s is the number that fits best by itself, so that with little data next to nothing is lost. The ridge is a multiple
of the mean square of an input, chosen for each matrix on samples that are held out of the sums, among them an infinite
one, which leaves s C0; if C0 does best there, C0 is kept.
"""

# I input, O output, J output that the ridge is chosen by

import math

import torch
from torch import Tensor

from minitron_cli import stopping
from minitron_cli.repair.gram import GramPair, SplitGramPair

RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # multiples of the mean square of an input
CAUTIOUS_RIDGE = 1.0  # where no sample was held out to choose by
CHOICE_OUTPUTS = 256  # outputs by which a ridge is chosen


def solve(start_OI: Tensor, sums: SplitGramPair) -> Tensor:
    """Fitted matrix C [O, I], fp32 on the sums' device; `start_OI` is C0."""
    start_OI = start_OI.to(sums.fit.upper_II.device).float()
    ridge = _best_ridge(start_OI, sums)
    # fp64, because G is often near singular: channels of a trained model are strongly correlated.
    solved_OI = start_OI if ridge is None else _Ridge(start_OI, sums.fit + sums.held_out, torch.float64).solved(ridge)
    return solved_OI.float()


def _best_ridge(start_OI: Tensor, sums: SplitGramPair) -> float | None:
    """Ridge with the smallest error on held-out samples; None where C0 has a smaller one.

    The error falls toward one ridge from both sides, so it is followed from the middle of the grid. fp32 is twice as
    fast, and tells ridges that are ten times apart from each other.
    """
    if not sums.held_out.upper_II.any():
        return CAUTIOUS_RIDGE
    # Evenly spaced outputs stand for all: outputs share one G, so a ridge that suits some of them suits the others.
    some_J = torch.arange(0, len(start_OI), -(-len(start_OI) // CHOICE_OUTPUTS), device=start_OI.device)
    start_JI, held_out = start_OI[some_J], sums.held_out.of_outputs(some_J)
    fitted, gram_II = _Ridge(start_JI, sums.fit.of_outputs(some_J), torch.float32), held_out.inputs_II
    errors: dict[float | None, float] = {
        None: _error(start_JI, gram_II, held_out),
        math.inf: _error(fitted.solved(math.inf), gram_II, held_out),
    }
    middle = len(RIDGES) // 2
    for side in (RIDGES[middle:], RIDGES[middle::-1]):
        for ridge, nearer in zip(side, (None, *side), strict=False):
            if ridge not in errors:
                errors[ridge] = _error(fitted.solved(ridge), gram_II, held_out)
            if nearer and errors[ridge] >= errors[nearer]:
                break
    return min(errors, key=errors.__getitem__)


class _Ridge:
    """Fits of one matrix for any ridge."""

    def __init__(self, start_OI: Tensor, sums: GramPair, dtype: torch.dtype) -> None:
        start_OI, self._gram_II, outputs_OI = (t.to(dtype) for t in (start_OI, sums.inputs_II, sums.outputs_OI))
        made_OI = start_OI @ self._gram_II
        square = float((made_OI * start_OI).sum())
        scale = float((outputs_OI * start_OI).sum()) / square if square > 0 else 1.0
        self._start_OI, self._missing_OI = scale * start_OI, outputs_OI - scale * made_OI
        self._squares_I = self._gram_II.diagonal().clone()

    def solved(self, ridge: float) -> Tensor:
        """C for one ridge; s C0 if that is infinite, or G + ridge is not positive definite in floating point."""
        stopping.raise_if_stopped()
        if math.isinf(ridge):
            return self._start_OI
        self._gram_II.diagonal().copy_(self._squares_I + ridge * self._squares_I.mean())  # no second G in memory
        factor_II, failed = torch.linalg.cholesky_ex(self._gram_II)
        if failed:
            return self._start_OI
        return self._start_OI + torch.cholesky_solve(self._missing_OI.T, factor_II).T


def _error(matrix_OI: Tensor, gram_II: Tensor, sums: GramPair) -> float:
    """Sum of |t - C a|^2 less the sum of |t|^2, which is the same for every C."""
    return float((matrix_OI * (matrix_OI @ gram_II - 2 * sums.outputs_OI)).double().sum())


def channel_gains(sums: SplitGramPair) -> Tensor:
    """Per-channel least-squares gain from input i to output i, [I]; 1 for channels that are always zero."""
    both = sums.fit + sums.held_out
    squares_I, products_I = both.upper_II.diagonal(), both.outputs_OI.diagonal()
    return torch.where(squares_I > 0, products_I / squares_I, 1.0)
