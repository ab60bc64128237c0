"""A norm over fewer channels, set right: its root mean square is taken over what is left of the residual stream.

The parent divides by the root of mean(x^2) over all channels, the child by that over the kept ones, so the child's
output is scaled by

    s = sqrt( mean over tokens of  mean_kept(x^2) / mean(x^2) )

which gives each norm's output the size it had. With moments M_n = sum x x^T / mean(x^2) of norm n over N tokens and
kept directions Q [D, K] it is sqrt(tr(Q^T M_n Q) / (K N)); a kept channel is a unit vector. It undoes what a smaller
norm does, not what it should do: sharper predictions can be worse ones, so s goes in with the strength that helps.
"""

# D hidden, K kept

import math
from collections.abc import Callable, Mapping

from torch import Tensor

from minitron_cli.repair.gram import NormMoments

POWERS = (0.0, 0.5, 1.0)
"""Of s, that are tried; 0 leaves the norm alone."""


def scale(moments: NormMoments, kept: Tensor) -> float:
    """s of one norm. `kept` is channel indices [K] or orthonormal directions [D, K]."""
    sum_DD, kept = moments.sum_DD, kept.to(moments.sum_DD.device)
    if kept.is_floating_point():
        energy, count = float(((sum_DD @ kept) * kept).double().sum()), kept.shape[1]
    else:
        energy, count = float(sum_DD.diagonal()[kept].double().sum()), len(kept)
    return math.sqrt(energy / (count * moments.tokens)) if energy > 0 else 1.0  # a norm that saw zeros only


def strengths(
    kinds: Mapping[str, Mapping[str, float]], distance: Callable[[dict[str, float]], float]
) -> dict[str, float]:
    """Kind of norm -> the power of s that brings the child nearest to the parent.

    First one power for all, then each kind's own, one kind after the other. `kinds` gives s of every norm of a kind;
    `distance` is that of a child whose norms are scaled as it is told.
    """
    best = dict.fromkeys(kinds, 0.0)
    nearest = distance({})
    for changes in [list(kinds), *([kind] for kind in kinds)]:
        for strength in POWERS:
            tried = best | dict.fromkeys(changes, strength)
            if tried != best and (found := distance(scales(kinds, tried))) < nearest:
                best, nearest = tried, found
    return best


def scales(kinds: Mapping[str, Mapping[str, float]], strengths: Mapping[str, float]) -> dict[str, float]:
    """Norm -> s to its kind's power, where that is not 0."""
    return {
        name: s ** strengths[kind] for kind, by_name in kinds.items() if strengths[kind] for name, s in by_name.items()
    }
