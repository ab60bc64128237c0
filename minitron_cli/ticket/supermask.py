"""Masks under which a network of weights that were never trained does better than all of it (Zhou et al. 2019).

Every criterion scores the weights of a matrix by its initial weights w_0 and, but for `random`, its trained ones w_f.
The highest are kept, as many in each matrix.
"""

from collections.abc import Callable
from fractions import Fraction

import torch
from torch import Tensor

from minitron_cli.ticket.masks import highest_share

Score = Callable[[Tensor, Tensor], Tensor]
"""Score of each weight of a matrix by (w_0, w_f)."""

SCORES: dict[str, Score] = {
    "large_final": lambda first, final: final.abs(),
    "large_final_same_sign": lambda first, final: (final * first.sign()).clamp(min=0),
    "magnitude_increase": lambda first, final: final.abs() - first.abs(),
}
"""Criterion that needs a training -> its score (Zhou et al. 2019, sec. 3)."""
SIGN = "large_final_same_sign"


def mask(criterion: str, first: Tensor, final: Tensor, keep: Fraction, draw: torch.Generator) -> Tensor:
    """Weights that a criterion keeps: the share `keep`, rounded up; fewer if more than the rest have changed sign.

    `large_final_same_sign` keeps no weight whose sign the training has changed.
    """
    if criterion == "random":
        return highest_share(torch.rand(first.shape, generator=draw), 1 - keep)
    scores = SCORES[criterion](first.float(), final.float())
    kept = highest_share(scores, 1 - keep)
    return kept & (scores > 0) if criterion == SIGN else kept


def values(first: Tensor, *, signed_constant: bool) -> Tensor:
    """Values of the weights that are kept: the initial ones, or their signs times the matrix's standard deviation."""
    return first.sign() * first.std() if signed_constant else first
