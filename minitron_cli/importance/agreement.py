"""How far two ways of scoring agree on the order of an axis's channels."""

import itertools

import torch
from torch import Tensor

from minitron_cli.importance.activation import AGGREGATIONS
from minitron_cli.trim.metric import Activation
from minitron_cli.trim.scores import Scores

# L layer, C channel

WAYS = {f"{b} of {s}": Activation(batch=b, sequence=s) for b, s in itertools.product(AGGREGATIONS, repeat=2)}
"""Aggregation over samples, of the aggregation over tokens."""


def agreement(scores: Scores, axis: str) -> dict[str, dict[str, float]]:
    """Spearman's rank correlation of every two aggregations; the mean over the layers where each ranks its own."""
    ranks = {way: _ranks(torch.atleast_2d(scores.select(axis, metric))) for way, metric in WAYS.items()}
    return {a: {b: _correlation(ranks[a], ranks[b]) for b in WAYS} for a in WAYS}


def _ranks(score_LC: Tensor) -> Tensor:
    """Centred, of length 1. Equal scores share the mean of their ranks."""
    rank_LC = torch.empty_like(score_LC, dtype=torch.float64)
    for row_C, score_C in zip(rank_LC, score_LC, strict=True):
        _, place_C, count = score_C.unique(return_inverse=True, return_counts=True)
        row_C.copy_((count.cumsum(0) - (count - 1) / 2)[place_C])
    rank_LC -= rank_LC.mean(1, keepdim=True)
    return rank_LC / rank_LC.norm(dim=1, keepdim=True).clamp_min(1e-12)


def _correlation(a_LC: Tensor, b_LC: Tensor) -> float:
    return float((a_LC * b_LC).sum(1).mean())
