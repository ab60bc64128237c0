"""A matrix of the child, fitted to what the parent computes in its place.

With inputs a as the child sees them and outputs t as they should be, over the calibration tokens,

    C = C0 + (T - C0 G) (G + ridge)^-1        G = sum a a^T,   T = sum t a^T

minimises sum |t - C a|^2 + ridge |C - C0|^2. The ridge draws towards the plain cut C0, not towards zero: with little
data or none nothing is lost. It is a multiple of the mean square of an input, chosen for each matrix on samples that
are left out of the sums; if the plain cut does best there, that is kept.
"""

# I input, O output, J output that judges

import torch
from torch import Tensor

from minitron_cli.repair.gram import Evidence, Pairs

RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
CAREFUL = 1.0  # where no sample was left out to choose by
JUDGES = 256  # outputs by which a ridge is chosen


def solve(start_OI: Tensor, evidence: Evidence) -> Tensor:
    """C, fp32, on the evidence's device."""
    start_OI = start_OI.to(evidence.fit.inputs_II.device).double()
    ridge = _best_ridge(start_OI, evidence)
    solved_OI = start_OI if ridge is None else _solved(start_OI, evidence.fit + evidence.held, ridge)
    return (start_OI if solved_OI is None else solved_OI).float()


def _best_ridge(start_OI: Tensor, evidence: Evidence) -> float | None:
    """None where the plain cut is nearer to the held-out samples than any solution."""
    if not evidence.held.inputs_II.any():
        return CAREFUL
    some_J = torch.arange(0, len(start_OI), -(-len(start_OI) // JUDGES), device=start_OI.device)
    start_JI, fit, held = start_OI[some_J], evidence.fit.of(some_J), evidence.held.of(some_J)
    errors: dict[float | None, float] = {None: _error(start_JI, held)}
    for ridge in RIDGES:
        solved_JI = _solved(start_JI, fit, ridge)
        if solved_JI is not None:
            errors[ridge] = _error(solved_JI, held)
    return min(errors, key=errors.__getitem__)


def _solved(start_OI: Tensor, pairs: Pairs, ridge: float) -> Tensor | None:
    """None where the moments are too rough for so small a ridge, or where the inputs are never on."""
    gram_II = pairs.inputs_II.double()
    missing_OI = pairs.outputs_OI.double() - start_OI @ gram_II
    gram_II.diagonal().add_(ridge * gram_II.diagonal().mean())
    factor_II, failed = torch.linalg.cholesky_ex(gram_II)
    return None if failed else start_OI + torch.cholesky_solve(missing_OI.T, factor_II).T


def _error(matrix_OI: Tensor, pairs: Pairs) -> float:
    """The sum of |t - C a|^2, less that of |t|^2, which all share."""
    return float((matrix_OI * (matrix_OI @ pairs.inputs_II.double() - 2 * pairs.outputs_OI.double())).sum())


def gains(evidence: Evidence) -> Tensor:
    """For each input, what it is multiplied by to be nearest to the output of the same number; 1 where it is 0."""
    both = evidence.fit + evidence.held
    squares_I, products_I = both.inputs_II.diagonal(), both.outputs_OI.diagonal()
    return torch.where(squares_I > 0, products_I / squares_I, 1.0)
