"""How far two ways of scoring agree on the order of an axis's channels."""

import itertools

import torch
from torch import Tensor

from minitron_cli.scores.metric import AGGREGATIONS, Activation
from minitron_cli.scores.scores import Scores

# L layer, C channel

WAYS = {f"{b} of {s}": Activation(batch=b, sequence=s) for b, s in itertools.product(AGGREGATIONS, repeat=2)}
"""Aggregation over samples, of the aggregation over tokens."""


def agreement(scores: Scores, axis: str) -> dict[str, dict[str, float]]:
    """Spearman's rank correlation of every two aggregations; the mean over the layers, or experts, that rank apart."""
    found = {way: scores.select(axis, metric) for way, metric in WAYS.items()}
    ranks = {way: _ranks(score.reshape(-1, score.shape[-1])) for way, score in found.items()}
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
    """Rows without an order, such as the neurons of an expert that no token chose, have no say."""
    has_order_L = a_LC.any(1) & b_LC.any(1)
    return float((a_LC * b_LC).sum() / has_order_L.sum().clamp_min(1))
