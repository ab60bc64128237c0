"""Ids drawn from a softmax by random numbers that are a function of (seed, epoch, block, position, draw).

Nothing is carried from one position to the next, so that any process can draw any position and gets the same ids.

Draw j of n is taken from the j-th of n equal parts of the unit interval. Each id is then drawn n * p times on average,
as with n independent draws, and differs from that by less: shares of draws are unbiased estimates of p.
"""

# N token, V vocab, J draw

import numpy as np
import torch
from torch import Tensor

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
FIRST, SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
WORD = (1 << 64) - 1


def thresholds(seed: int, epoch: int, block: int, positions_N: np.ndarray, draws: int) -> np.ndarray:
    """Places in [0, 1) at which the distribution of each position is read, ascending, float64 [N, J]."""
    state = np.zeros(1, np.uint64)
    for number in (seed, epoch, block):
        state = _next(state, np.array([number & WORD], np.uint64))
    state_N = _next(state, positions_N.astype(np.uint64))
    words_NJ = _next(state_N[:, None], np.arange(draws, dtype=np.uint64))
    uniform_NJ = (words_NJ >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return (np.arange(draws) + uniform_NJ) / draws


def _next(state: np.ndarray, number: np.ndarray) -> np.ndarray:
    """Output `number` of the generator that starts at `state` (SplitMix64: Steele et al. 2014)."""
    word = state + (number + np.uint64(1)) * GOLDEN
    word = (word ^ (word >> np.uint64(30))) * FIRST
    word = (word ^ (word >> np.uint64(27))) * SECOND
    return word ^ (word >> np.uint64(31))


def draw(logits_NV: Tensor, thresholds_NJ: Tensor) -> tuple[Tensor, Tensor]:
    """Ids drawn from softmax(logits), ascending, int64 [N, J], and the softmax's entropy in nats, [N].

    Logits are in fp32 or fp64 and are overwritten.
    """
    logits_NV.sub_(logits_NV.amax(-1, keepdim=True))
    p_NV = logits_NV.exp()
    below_NV = p_NV.cumsum(-1, dtype=torch.float64)
    total_N1 = below_NV[:, -1:].contiguous()
    at_NJ = torch.minimum(thresholds_NJ * total_N1, torch.nextafter(total_N1, torch.zeros_like(total_N1)))
    ids_NJ = torch.searchsorted(below_NV, at_NJ, right=True)
    mean_N = logits_NV.mul_(p_NV).sum(-1, dtype=torch.float64) / total_N1[:, 0]
    return ids_NJ, (total_N1[:, 0].log() - mean_N).clamp_(min=0)
