"""Least-squares fit of a matrix of the child to what the parent computes in its place.

With inputs a as the child sees them and wanted outputs t, over the calibration tokens,

    C = C0 + (T - C0 G) (G + ridge)^-1        G = sum a a^T,   T = sum t a^T

minimizes sum |t - C a|^2 + ridge |C - C0|^2. The ridge pulls toward the plainly pruned matrix C0, not toward zero, so
that with little data, or none, nothing is lost. It is a multiple of the mean square of an input, chosen for each matrix
on samples that are held out of the sums; if C0 does best there, C0 is kept.
"""

# I input, O output, J output that the ridge is chosen by

import torch
from torch import Tensor

from minitron_cli import stopping
from minitron_cli.repair.gram import GramPair, SplitGramPair

RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # multiples of the mean square of an input
CAUTIOUS_RIDGE = 1.0  # where no sample was held out to choose by
CHOICE_OUTPUTS = 256  # outputs by which a ridge is chosen


def solve(start_OI: Tensor, sums: SplitGramPair) -> Tensor:
    """Fitted matrix C [O, I], fp32 on the sums' device; `start_OI` is C0."""
    # fp64, because G is often near singular: channels of a trained model are strongly correlated.
    start_OI = start_OI.to(sums.fit.inputs_II.device).double()
    ridge = _best_ridge(start_OI, sums)
    solved_OI = start_OI if ridge is None else _solved(start_OI, sums.fit + sums.held_out, ridge)
    return (start_OI if solved_OI is None else solved_OI).float()


def _best_ridge(start_OI: Tensor, sums: SplitGramPair) -> float | None:
    """Ridge with the smallest error on held-out samples; None where C0 has a smaller one."""
    if not sums.held_out.inputs_II.any():
        return CAUTIOUS_RIDGE
    # Evenly spaced outputs stand for all: outputs share one G, so a ridge that suits some of them suits the others.
    some_J = torch.arange(0, len(start_OI), -(-len(start_OI) // CHOICE_OUTPUTS), device=start_OI.device)
    start_JI, fit, held_out = start_OI[some_J], sums.fit.of_outputs(some_J), sums.held_out.of_outputs(some_J)
    errors: dict[float | None, float] = {None: _error(start_JI, held_out)}
    for ridge in RIDGES:
        solved_JI = _solved(start_JI, fit, ridge)
        if solved_JI is not None:
            errors[ridge] = _error(solved_JI, held_out)
    return min(errors, key=errors.__getitem__)


def _solved(start_OI: Tensor, sums: GramPair, ridge: float) -> Tensor | None:
    """C for one ridge; None if G + ridge is not positive definite in fp64, or all inputs are zero."""
    stopping.raise_if_stopped()
    gram_II = sums.inputs_II.double()
    missing_OI = sums.outputs_OI.double() - start_OI @ gram_II  # before the ridge is added to the same memory
    gram_II.diagonal().add_(ridge * gram_II.diagonal().mean())
    factor_II, failed = torch.linalg.cholesky_ex(gram_II)
    return None if failed else start_OI + torch.cholesky_solve(missing_OI.T, factor_II).T


def _error(matrix_OI: Tensor, sums: GramPair) -> float:
    """Sum of |t - C a|^2 less the sum of |t|^2, which is the same for every C."""
    return float((matrix_OI * (matrix_OI @ sums.inputs_II.double() - 2 * sums.outputs_OI.double())).sum())


def channel_gains(sums: SplitGramPair) -> Tensor:
    """Per-channel least-squares gain from input i to output i, [I]; 1 for channels that are always zero."""
    both = sums.fit + sums.held_out
    squares_I, products_I = both.inputs_II.diagonal(), both.outputs_OI.diagonal()
    return torch.where(squares_I > 0, products_I / squares_I, 1.0)
