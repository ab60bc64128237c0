"""Successive halving: candidates train on, are compared at rungs, and the better share goes further.

Knows no training: what trains a candidate up to a rung and scores it there is passed in (Jamieson & Talwalkar 2016).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from minitron_cli.search.rank import RankedCandidate, by_retraining

LEAST = 2  # one candidate alone has nobody to be compared with


def rung_steps(total_steps: int, rungs: int, keep: float) -> list[int]:
    """After how many steps candidates are compared: the last rung is the end, each at `keep` of the next one."""
    steps = (math.ceil(total_steps * keep ** (rungs - 1 - i)) for i in range(rungs))
    return sorted({max(1, step) for step in steps})


def survivors(count: int, keep: float) -> int:
    """How many of `count` candidates go on to the next rung."""
    return min(count, max(LEAST, math.ceil(round(keep * count, 9))))


def halve(
    ranked: Sequence[RankedCandidate],
    top: int,
    rungs: int,
    keep: float,
    train: Callable[[Sequence[RankedCandidate], int], Sequence[float]],
    drop: Callable[[Sequence[RankedCandidate]], None],
) -> list[RankedCandidate]:
    """Train the first `top` from rung to rung, and order all by how far they got and what they scored there.

    `train` brings candidates to rung i and returns their scores; `drop` is told of those that go no further.
    """
    running, out = list(ranked[:top]), list(ranked[top:])
    for i in range(rungs):
        scores = train(running, i)
        running = by_retraining(
            [replace(entry, rungs=(*entry.rungs, score)) for entry, score in zip(running, scores, strict=True)]
        )
        going = survivors(len(running), keep) if i + 1 < rungs else len(running)
        out += running[going:]
        drop(running[going:])
        running = running[:going]
    return by_retraining([*running, *sorted(out, key=lambda e: (e.zero_shot, e.candidate.name))])
