"""Ids drawn from a softmax by random numbers that are a function of (seed, epoch, block, position, draw).

Nothing is carried from one position to the next, so that any process can draw any position and gets the same ids.

Draw j of n is taken from the j-th of n equal parts of the unit interval. Each id is then drawn n * p times on average,
as with n independent draws, and differs from that by less: shares of draws are unbiased estimates of p.
"""

# N token, V vocab, J draw, S span of the vocab, C one of its ids

import numpy as np
import torch
from torch import Tensor

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
FIRST, SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
WORD = (1 << 64) - 1
SPAN = 512  # ids that are searched for a draw, after all spans


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
    count, vocab = logits_NV.shape
    logits_NV.sub_(logits_NV.amax(-1, keepdim=True))
    p_NV = logits_NV.new_zeros(count, -(-vocab // SPAN) * SPAN)
    torch.exp(logits_NV, out=p_NV[:, :vocab])
    # Sums within a span in the logits' precision, of spans in fp64: one sum of all in fp32 would lose the rare ids.
    below_NSC = p_NV.unflatten(1, (-1, SPAN)).cumsum(-1)
    ends_NS = below_NSC[:, :, -1].to(torch.float64).cumsum(-1)
    total_N1 = ends_NS[:, -1:].contiguous()
    at_NJ = _below(thresholds_NJ * total_N1, total_N1)
    span_NJ = torch.searchsorted(ends_NS, at_NJ, right=True)
    before_NJ = torch.nn.functional.pad(ends_NS, (1, 0)).gather(1, span_NJ)
    inside_NJC = below_NSC[torch.arange(count, device=span_NJ.device)[:, None], span_NJ]
    left_NJ1 = _below((at_NJ - before_NJ).to(p_NV.dtype)[:, :, None], inside_NJC[:, :, -1:])
    ids_NJ = span_NJ * SPAN + torch.searchsorted(inside_NJC, left_NJ1, right=True)[:, :, 0]
    mean_N = logits_NV.mul_(p_NV[:, :vocab]).sum(-1) / total_N1[:, 0]
    return ids_NJ, (total_N1[:, 0].log() - mean_N).clamp_(min=0)


def _below(at: Tensor, end: Tensor) -> Tensor:
    """Places that rounding has not moved to the end, behind which there is no id."""
    return torch.minimum(at, torch.nextafter(end, torch.zeros_like(end)))
