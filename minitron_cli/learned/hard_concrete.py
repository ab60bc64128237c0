"""The hard concrete distribution (Louizos et al. 2018): a gate between 0 and 1 that is often exactly one of them.

With u uniform, s = sigmoid((log u - log(1 - u) + log alpha) / beta) and z = clip(s (zeta - gamma) + gamma, 0, 1).
"""

# Q node of the quadrature

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1
"""Temperature and the two ends to which s is stretched, as in the paper."""
NODES = 32
TINY = 1e-6
"""Least distance of u from 0 and 1."""


def sampled(log_alpha: Tensor, draw: torch.Generator) -> Tensor:
    """Gates drawn with a generator of the CPU, differentiable in log alpha where they are not 0 or 1."""
    u = torch.rand(log_alpha.shape, generator=draw, dtype=log_alpha.dtype).clamp(TINY, 1 - TINY).to(log_alpha.device)
    s = torch.sigmoid((u.logit() + log_alpha) / BETA)
    return (s * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def above(log_alpha: Tensor, x: float | Tensor) -> Tensor:
    """P(z > x) for 0 <= x < 1: at 0 the probability that the gate is not closed."""
    at = (torch.as_tensor(x, dtype=log_alpha.dtype, device=log_alpha.device) - GAMMA) / (ZETA - GAMMA)
    return torch.sigmoid(log_alpha - BETA * at.logit())


def expected(log_alpha: Tensor) -> Tensor:
    """E[z], the integral of P(z > x) over x from 0 to 1, by Gauss-Legendre quadrature."""
    nodes_Q, weights_Q = (t.to(log_alpha) for t in _quadrature())
    return above(log_alpha[..., None], nodes_Q) @ weights_Q


@lru_cache
def _quadrature() -> tuple[Tensor, Tensor]:
    """Nodes in (0, 1) and their weights, fp64."""
    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    return torch.from_numpy((nodes + 1) / 2), torch.from_numpy(weights / 2)


def log_alpha_of(probability: float) -> float:
    """Value of log alpha at which the gate is not closed with this probability."""
    return math.log(probability / (1 - probability)) + BETA * math.log(-GAMMA / ZETA)
