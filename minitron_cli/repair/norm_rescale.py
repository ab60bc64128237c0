"""Rescale norms that run over fewer channels, so that their outputs have the size that they had in the parent.

The parent divides by the root of mean(x^2) over all channels, the child by that over the kept ones. So the child's
output is multiplied by

    s = sqrt( mean over tokens of  mean_kept(x^2) / mean(x^2) )

With moments M_n = sum x x^T / mean(x^2) of norm n over N tokens and kept directions Q [D, K] (a kept channel is a unit
vector) s is sqrt(tr(Q^T M_n Q) / (K N)). Restoring the size is not always better, because it sharpens predictions, and
sharper ones can be worse: a power of s is chosen by the distance to the parent.
"""

# D hidden, K kept

import math
from collections.abc import Callable, Mapping

from torch import Tensor

from minitron_cli.repair.gram import NormMoments

Distance = Callable[[Mapping[str, float]], float]
"""Distance of the child to the parent when the outputs of these norms are multiplied by these factors."""

POWERS = (0.0, 0.5, 1.0)
"""Powers of s that are tried; 0 leaves the norm as it is."""


def scale(moments: NormMoments, kept: Tensor) -> float:
    """Factor s of one norm. `kept` is channel indices [K] or orthonormal directions [D, K]."""
    sum_DD, kept = moments.sum_DD, kept.to(moments.sum_DD.device)
    if kept.is_floating_point():
        energy, count = float(((sum_DD @ kept) * kept).double().sum()), kept.shape[1]
    else:
        energy, count = float(sum_DD.diagonal()[kept].double().sum()), len(kept)
    return (
        math.sqrt(energy / (count * moments.tokens)) if energy > 0 else 1.0
    )  # 1 for a norm whose inputs were all zero


def strengths(kinds: Mapping[str, Mapping[str, float]], distance: Distance) -> dict[str, float]:
    """Kind of norm -> power of s that brings the child nearest to the parent.

    One power for all kinds is tried first, then one kind after the other. `kinds` maps each kind to s by norm;
    `distance` measures the child with these factors of its norms.
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
    """Norm -> s to the power of its kind, for norms whose power is not 0."""
    return {
        name: s ** strengths[kind] for kind, by_name in kinds.items() if strengths[kind] for name, s in by_name.items()
    }
