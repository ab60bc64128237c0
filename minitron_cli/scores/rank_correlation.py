"""Agreement of importance metrics on the order of an axis's channels."""

import itertools

import numpy as np
from torch import Tensor

from minitron_cli.scores.metric import AGGREGATIONS, Activation
from minitron_cli.scores.scores import Scores

# L layer, C channel

METRICS = {f"{b} of {s}": Activation(batch=b, sequence=s) for b, s in itertools.product(AGGREGATIONS, repeat=2)}
"""Aggregation over samples of the aggregation over tokens -> metric."""


def agreement(scores: Scores, axis: str) -> dict[str, dict[str, float]]:
    """Spearman's rank correlation of every two aggregations on an axis, averaged over layers, or over experts.

    Rows without an order, such as the neurons of an expert that no token was routed to, are left out of the average.
    """
    ranks = {name: _ranks(scores.select(axis, metric)) for name, metric in METRICS.items()}
    return {a: {b: _correlation(ranks[a], ranks[b]) for b in METRICS} for a in METRICS}


def _ranks(score: Tensor) -> np.ndarray:
    """Ranks within each row [L, C], centered and of norm 1; equal scores share the mean of their ranks."""
    from scipy.stats import rankdata

    rank_LC = rankdata(score.reshape(-1, score.shape[-1]).numpy(), axis=1)
    rank_LC -= rank_LC.mean(axis=1, keepdims=True)
    return rank_LC / np.maximum(np.linalg.norm(rank_LC, axis=1, keepdims=True), 1e-12)


def _correlation(a_LC: np.ndarray, b_LC: np.ndarray) -> float:
    has_order_L = a_LC.any(axis=1) & b_LC.any(axis=1)
    return float((a_LC * b_LC).sum() / max(has_order_L.sum(), 1))
