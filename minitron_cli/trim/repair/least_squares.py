"""The kept inputs of a matrix stand in for the dropped ones, as well as a linear map of them can.

Heads and neurons: one matrix reads them.

With inputs a of a matrix W, kept set K and dropped set L, the child's columns minimise over the calibration tokens

    sum |W_L a_L - C a_K|^2 + ridge |C|^2        C = W_L G_LK (G_KK + ridge)^-1        G = sum a a^T

and the child reads with W_K + C. The ridge draws towards the plain cut, not towards zero: with little data or none
nothing is lost. It is a multiple of the mean square of a kept input, chosen for each matrix on samples left out of G.

The residual stream: what a norm lets through, x / rms(x), is made out of what is left of it, y = E^T x / rms(x), for
all of its readers at once. E is the basis, or the kept channels' unit vectors, and M the norm's second moments:

    x / rms(x)  ~  B y        B = E + (1 - E E^T) M E (E^T M E + ridge)^-1

The readers are W diag(g) B, with g the norm's weight, of which 1 is left.
"""

# H output of the matrix, C input, D hidden, K kept, L dropped

import torch
from torch import Tensor

from minitron_cli.trim.repair.gram import Gram

RIDGES = (1e-3, 1e-2, 1e-1, 1.0)
CAREFUL = 1e-1  # where no sample was left out to choose by
JUDGES = 256  # outputs of a matrix by which its ridge is chosen
STREAM_RIDGE = 1e-2  # of a norm, which sees every token with the same size; 1e-3 to 1e-1 come to the same


def solve(weight_HC: Tensor, gram: Gram, kept_K: Tensor) -> Tensor:
    """The child's columns, [H, K] in the weight's dtype."""
    kept_K = kept_K.to(gram.fit_CC.device)
    weight = weight_HC.to(gram.fit_CC.device).double()
    ridge = _best_ridge(weight, gram, kept_K)
    columns_HK = _solved(weight, gram.fit_CC + gram.held_CC, kept_K, ridge)
    plain_HK = weight[:, kept_K]
    return (plain_HK if columns_HK is None else columns_HK).to(weight_HC.device, weight_HC.dtype)


def _best_ridge(weight_HC: Tensor, gram: Gram, kept_K: Tensor) -> float:
    if not gram.held_CC.any():
        return CAREFUL
    errors = {
        ridge: _error(weight_HC, _solved(weight_HC, gram.fit_CC, kept_K, ridge), gram, kept_K) for ridge in RIDGES
    }
    return min(errors, key=errors.__getitem__)


def _solved(weight_HC: Tensor, gram_CC: Tensor, kept_K: Tensor, ridge: float) -> Tensor | None:
    """W_K + C; None where the moments are too rough for so small a ridge, or where the kept inputs are never on."""
    dropped_L = _others(kept_K, len(gram_CC))
    gram_KK = gram_CC[kept_K[:, None], kept_K].double()
    gram_LK = gram_CC[dropped_L[:, None], kept_K].double()
    gram_KK.diagonal().add_(ridge * gram_KK.diagonal().mean())
    factor_KK, failed = torch.linalg.cholesky_ex(gram_KK)
    if failed:
        return None
    missing_HK = weight_HC[:, dropped_L] @ gram_LK
    return weight_HC[:, kept_K] + torch.cholesky_solve(missing_HK.T, factor_KK).T


def _error(weight_HC: Tensor, columns_HK: Tensor | None, gram: Gram, kept_K: Tensor) -> float:
    """Squared error of the matrix's output, summed over the tokens held out."""
    if columns_HK is None:
        return float("inf")
    missing_HC = weight_HC.clone()
    missing_HC[:, kept_K] -= columns_HK
    missing_HC = missing_HC.float()
    return float((missing_HC @ gram.held_CC * missing_HC).sum())


def _others(kept_K: Tensor, size: int) -> Tensor:
    is_dropped = torch.ones(size, dtype=torch.bool, device=kept_K.device)
    is_dropped[kept_K] = False
    return is_dropped.nonzero()[:, 0]


def reading(moments_DD: Tensor, kept_DK: Tensor) -> Tensor:
    """B of one norm, fp32 [D, K]; `kept_DK` has orthonormal columns."""
    kept_DK = kept_DK.to(moments_DD.device).double()
    seen_DK = moments_DD.double() @ kept_DK
    gram_KK = kept_DK.T @ seen_DK
    gram_KK.diagonal().add_(STREAM_RIDGE * gram_KK.diagonal().mean())
    factor_KK, failed = torch.linalg.cholesky_ex(gram_KK)
    if failed:
        return kept_DK.float()
    dropped_DK = seen_DK - kept_DK @ (kept_DK.T @ seen_DK)
    return (kept_DK + torch.cholesky_solve(dropped_DK.T, factor_KK).T).float()
