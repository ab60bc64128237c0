"""Basis of the residual stream whose leading directions are kept instead of channels (PCA).

With x the input of a norm,

    M = sum over norms and tokens of  x x^T / mean(x^2)

and Q its eigenvectors, largest eigenvalue first, the first k columns lose the least of the norms' outputs. Once each
norm's weight g is folded into the matrices that read it, all weights can be written in that basis,

    readers  W diag(g) Q        writers  Q^T W        embedding  E Q        norms  1

and the function is the parent's as long as no column is dropped. One Q for the whole model keeps the architecture;
SliceGPT (Ashkboos et al. 2024) has one per block and needs modeling code of its own.
"""

# D hidden, K kept directions

import torch
from torch import Tensor

from minitron_cli.errors import CheckpointError
from minitron_cli.model.residual_stream import rotation_obstacle
from minitron_cli.model.shape import Shape


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
    signs_D = vectors_DD.gather(0, vectors_DD.abs().argmax(dim=0, keepdim=True)).sign()
    return (vectors_DD * signs_D)[:, :count].float().contiguous()
