"""Basis of the residual stream whose leading directions are kept instead of channels (PCA).

With x the input of a norm,

    M = sum over norms and tokens of  x x^T / mean(x^2)

and Q its eigenvectors, largest eigenvalue first, the first k columns lose the least of the norms' outputs. Once each
norm's weight g is folded into the matrices that read it, all weights can be written in that basis,

    readers  W diag(g) Q        writers  Q^T W        embedding  E Q        norms  1

and the function is the parent's as long as no column is dropped. One Q for the whole model keeps the architecture;
SliceGPT (Ashkboos et al. 2024) has one per block and needs modeling code of its own.

What is lost depends on the subspace that is kept, not on the basis inside it. The weight g of the norm before a tied LM
head cannot be folded, because the head is the embedding. With R the eigenvectors and a the eigenvalues of
Q_k^T diag(g) Q_k, the basis Q_k R and the norm weight a make the logits E P diag(g) P x with P = Q_k Q_k^T: nothing is
approximated but by the projection.
"""

# D hidden, K kept directions

import torch
from torch import Tensor

from minitron_cli.errors import CheckpointError
from minitron_cli.model.residual_stream import rotation_obstacle
from minitron_cli.model.shape import Shape
from minitron_cli.repair.gram import NormMoments


def check_rotatable(shape: Shape) -> None:
    """Raise CheckpointError where a model in another basis would compute another function."""
    if reason := rotation_obstacle(shape):
        raise CheckpointError(f"a {shape.family.model_type} model of this config cannot be rotated: {reason}")


def leading_directions(moments_DD: Tensor, count: int) -> Tensor:
    """Eigenvectors of the `count` largest eigenvalues as columns, fp32 [D, count].

    The entry of largest magnitude of each is positive: an eigenvector's sign is arbitrary, and would otherwise depend
    on the linear-algebra library.
    """
    vectors_DD = torch.linalg.eigh(moments_DD.cpu().double()).eigenvectors.flip(1)
    return _with_signs(vectors_DD[:, :count])


def head_moments(final: NormMoments, gain_D: Tensor) -> Tensor:
    """Second moments [D, D] of the final norm's output g x / rms(x), scaled to the trace of those of x / rms(x), fp64.

    They are large in the directions that the LM head reads.
    """
    gain_D = gain_D.double()
    unweighted_DD = final.sum_DD.cpu().double()
    weighted_DD = gain_D[:, None] * unweighted_DD * gain_D
    return weighted_DD * (unweighted_DD.trace() / weighted_DD.trace().clamp_min(torch.finfo(torch.float64).tiny))


def diagonalizing(basis_DK: Tensor, gain_D: Tensor) -> Tensor:
    """Basis [D, K] of the same subspace in which diag(gain) is diagonal, fp32: eigenvectors of Q_k^T diag(g) Q_k."""
    basis_DK = basis_DK.double()
    return _with_signs(basis_DK @ torch.linalg.eigh(basis_DK.T @ (gain_D.double()[:, None] * basis_DK)).eigenvectors)


def _with_signs(vectors_DK: Tensor) -> Tensor:
    signs_K = vectors_DK.gather(0, vectors_DK.abs().argmax(dim=0, keepdim=True)).sign()
    return (vectors_DK * signs_K).float().contiguous()
