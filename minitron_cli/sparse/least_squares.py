"""Least squares for the weights that a mask leaves: each output is fitted to what the whole matrix computes.

With the whole matrix W, the sparse one C0, the sums G = sum x x^T over the inputs, and a mask m for each row,

    C = C0 + D,   (G + ridge)[m, m] D[m] = ((W - C0) G)[m]    for every row

minimizes sum |W x - C x|^2 + ridge |C - C0|^2 over matrices with the mask's zeros. The ridge is a multiple of the mean
square of an input, chosen for each matrix on tokens that are held out of the sums; where C0 does best there, it stays.
Rows have masks of their own, so each is a system of its own: solved exactly for narrow matrices, and for wide ones by
conjugate gradients, preconditioned by the diagonal, on all rows at once.
"""

# O output, I input, J outputs that the ridge is chosen by, R rows of a batch, K weights of a row that stay

import torch
from torch import Tensor

from minitron_cli import stopping
from minitron_cli.repair.least_squares import RIDGES

EXACT_UP_TO = 256
"""Inputs up to which rows are solved exactly: their systems cost more than conjugate gradients beyond."""
TOLERANCE = 1e-2
"""Norm of the residual, relative to the right-hand side, at which conjugate gradients end for a row."""
STEPS = 16
"""Steps after which they end in any case. On pretrained models the ridges that are chosen need no more, and with
smaller ones further steps fit what held-out tokens do not have."""
CHOICE_OUTPUTS = 128
"""Outputs that the ridge is chosen by."""
BATCH_BYTES = 64 << 20
"""Memory of the systems that are solved together."""


def fitted(weight_OI: Tensor, start_OI: Tensor, mask_OI: Tensor, fit_II: Tensor, held_out_II: Tensor) -> Tensor:
    """C [O, I], fp32: fitted on the second moments `fit_II`, with the ridge that is best on `held_out_II`.

    `start_OI` itself if it is best there, or nothing is held out. `weight_OI` is W, `start_OI` is C0.
    """
    weight_OI, start_OI = weight_OI.float(), start_OI.float()
    ridge = _best_ridge(weight_OI, start_OI, mask_OI, fit_II, held_out_II)
    if ridge is None:
        return start_OI
    return start_OI + correction((weight_OI - start_OI) @ fit_II, mask_OI, fit_II, ridge * _mean_square(fit_II))


def _best_ridge(
    weight_OI: Tensor, start_OI: Tensor, mask_OI: Tensor, fit_II: Tensor, held_out_II: Tensor
) -> float | None:
    """Ridge with the smallest error on held-out tokens, None where C0 has a smaller one.

    The error falls toward one ridge from both sides, so it is followed from the middle of the grid.
    """
    if not held_out_II.any():
        return None
    # Evenly spaced outputs stand for all, which share one G.
    some_J = torch.arange(0, len(weight_OI), -(-len(weight_OI) // CHOICE_OUTPUTS), device=weight_OI.device)
    missing_JI, mask_JI = (weight_OI - start_OI)[some_J], mask_OI[some_J]
    wanted_JI, mean = missing_JI @ fit_II, _mean_square(fit_II)

    def error(ridge: float) -> float:
        return squared_error(missing_JI - correction(wanted_JI, mask_JI, fit_II, ridge * mean), held_out_II)

    errors: dict[float | None, float] = {None: squared_error(missing_JI, held_out_II)}
    middle = len(RIDGES) // 2
    for side in (RIDGES[middle:], RIDGES[middle::-1]):
        nearer: float | None = None
        for ridge in side:
            if ridge not in errors:
                errors[ridge] = error(ridge)
            if nearer is not None and errors[ridge] >= errors[nearer]:
                break
            nearer = ridge
    return min(errors, key=errors.__getitem__)


def _mean_square(gram_II: Tensor) -> float:
    return float(gram_II.diagonal().mean())


def squared_error(missing_OI: Tensor, gram_II: Tensor) -> float:
    """Sum of |(W - C) x|^2 over tokens, from the difference of the matrices and the second moments."""
    return float((missing_OI @ gram_II * missing_OI).double().sum())


def correction(wanted_OI: Tensor, mask_OI: Tensor, gram_II: Tensor, ridge: float) -> Tensor:
    """D [O, I], which is zero where the mask is, with (G + ridge)[m, m] D[m] = wanted[m] for every row."""
    solver = exact if len(gram_II) <= EXACT_UP_TO else by_conjugate_gradients
    return solver(wanted_OI, mask_OI, gram_II, ridge)


def exact(wanted_OI: Tensor, mask_OI: Tensor, gram_II: Tensor, ridge: float) -> Tensor:
    """D by a Cholesky factorization for every row, in batches of rows; zero for a row where that is not possible."""
    found_OI = torch.zeros_like(wanted_OI)
    most = max(int(mask_OI.sum(1).max()), 1)
    rows = max(1, BATCH_BYTES // (most * most * wanted_OI.itemsize))
    for start in range(0, len(wanted_OI), rows):
        stopping.raise_if_stopped()
        mask_RI = mask_OI[start : start + rows]
        # Weights that stay come first; where a row has fewer of them than others, its system ends in an identity.
        kept_RK = mask_RI.int().argsort(dim=1, descending=True, stable=True)[:, :most]
        is_kept_RK = mask_RI.gather(1, kept_RK)
        system_RKK = gram_II[kept_RK[:, :, None], kept_RK[:, None, :]]
        system_RKK *= is_kept_RK[:, :, None] & is_kept_RK[:, None, :]
        system_RKK.diagonal(dim1=1, dim2=2).add_(torch.where(is_kept_RK, ridge, 1.0))
        factor_RKK, failed_R = torch.linalg.cholesky_ex(system_RKK)
        wanted_RK = wanted_OI[start : start + rows].gather(1, kept_RK) * is_kept_RK
        solved_RK = torch.cholesky_solve(wanted_RK[:, :, None], factor_RKK)[:, :, 0]
        solved_RK = torch.where(failed_R[:, None] > 0, 0, solved_RK)
        found_OI[start : start + rows].scatter_(1, kept_RK, solved_RK)
    return found_OI


def by_conjugate_gradients(
    wanted_OI: Tensor,
    mask_OI: Tensor,
    gram_II: Tensor,
    ridge: float,
    tolerance: float = TOLERANCE,
    steps: int = STEPS,
) -> Tensor:
    """D by preconditioned conjugate gradients on all rows at once, until every row's residual is within the tolerance.

    Residuals are measured in the norm of the preconditioner, the inverse of the diagonal of G + ridge. A step is one
    product with G, so that its cost does not depend on the mask.
    """
    inverse_I = 1 / (gram_II.diagonal() + ridge).clamp_min(torch.finfo(gram_II.dtype).tiny)
    found_OI = torch.zeros_like(wanted_OI)
    residual_OI = wanted_OI * mask_OI
    direction_OI = residual_OI * inverse_I
    square_O = (residual_OI * direction_OI).sum(1)
    enough_O = tolerance**2 * square_O
    for _ in range(steps):
        stopping.raise_if_stopped()
        going_O = square_O > enough_O
        if not going_O.any():
            break
        image_OI = (direction_OI @ gram_II).add_(direction_OI, alpha=ridge).mul_(mask_OI)
        step_O = torch.where(going_O, square_O / (direction_OI * image_OI).sum(1), 0)
        found_OI.addcmul_(direction_OI, step_O[:, None])
        residual_OI.addcmul_(image_OI, step_O[:, None], value=-1)
        scaled_OI = residual_OI * inverse_I
        before_O, square_O = square_O, torch.where(going_O, (residual_OI * scaled_OI).sum(1), square_O)
        ratio_O = torch.where(going_O, square_O / before_O, 0)
        direction_OI = scaled_OI.addcmul_(direction_OI, ratio_O[:, None])
    return found_OI
