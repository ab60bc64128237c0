"""Successive halving: candidates are trained from rung to rung, and the best fraction continues after each.

The functions that train and score are passed in (Jamieson & Talwalkar 2016).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from minitron_cli.search.rank import RankedCandidate, by_retraining

MIN_SURVIVORS = 2  # a single candidate cannot be compared


def rung_steps(total_steps: int, rungs: int, keep: float) -> list[int]:
    """Steps at which candidates are compared: the last is `total_steps`, each is `keep` times the next."""
    steps = (math.ceil(total_steps * keep ** (rungs - 1 - i)) for i in range(rungs))
    return sorted({max(1, step) for step in steps})


def survivors(count: int, keep: float) -> int:
    """Number of `count` candidates that continue to the next rung."""
    return min(count, max(MIN_SURVIVORS, math.ceil(round(keep * count, 9))))


def halve(
    ranked: Sequence[RankedCandidate],
    top: int,
    rungs: int,
    keep: float,
    train: Callable[[Sequence[RankedCandidate], int], Sequence[float]],
    drop: Callable[[Sequence[RankedCandidate]], None],
) -> list[RankedCandidate]:
    """All candidates, ordered by the last rung reached and the score there, after training the first `top`.

    `train(candidates, i)` trains to rung i and returns the scores; `drop(candidates)` releases those that stop.
    """
    running, out = list(ranked[:top]), list(ranked[top:])
    for i in range(rungs):
        scores = train(running, i)
        running = by_retraining(
            [replace(entry, rungs=(*entry.rungs, score)) for entry, score in zip(running, scores, strict=True)]
        )
        kept = survivors(len(running), keep) if i + 1 < rungs else len(running)
        out += running[kept:]
        drop(running[kept:])
        running = running[:kept]
    return by_retraining([*running, *sorted(out, key=lambda e: (e.zero_shot, e.candidate.name))])
