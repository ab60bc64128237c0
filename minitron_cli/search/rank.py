"""Order candidates: by a zero-shot score, then by their score after lightweight retraining."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from minitron_cli import progress
from minitron_cli.search.space import Candidate

Score = Callable[[Candidate], float]  # lower is better: a loss in nats


@dataclass(frozen=True)
class Ranked:
    """A candidate with what is known of its quality."""

    candidate: Candidate
    zero_shot_loss: float
    retrained_loss: float | None = None

    @property
    def loss(self) -> float:
        return self.zero_shot_loss if self.retrained_loss is None else self.retrained_loss


def by_zero_shot(candidates: Sequence[Candidate], score: Score) -> list[Ranked]:
    """Score every candidate as cut, best first."""
    ranked = []
    with progress.track("score candidates", len(candidates), "candidates") as step:
        for candidate in candidates:
            ranked.append(Ranked(candidate, score(candidate)))
            step(1, loss=ranked[-1].zero_shot_loss)
    return sorted(ranked, key=lambda r: (r.zero_shot_loss, r.candidate.name))


def by_retraining(ranked: Sequence[Ranked], top: int, retrain: Score) -> list[Ranked]:
    """Retrain the best `top` and order them by the loss they reach; the others follow in their old order."""
    retrained = []
    with progress.track("retrain candidates", min(top, len(ranked)), "candidates") as step:
        for entry in ranked[:top]:
            retrained.append(replace(entry, retrained_loss=retrain(entry.candidate)))
            step(1, loss=retrained[-1].loss)
    return [*sorted(retrained, key=lambda r: (r.loss, r.candidate.name)), *ranked[top:]]


def kendall_tau(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Kendall's tau-a of two scores of the same items: 1 same order, -1 reversed. None for fewer than two."""
    pairs = [(i, j) for i in range(len(a)) for j in range(i)]
    if not pairs:
        return None
    return sum(_sign(a[i] - a[j]) * _sign(b[i] - b[j]) for i, j in pairs) / len(pairs)


def _sign(x: float) -> int:
    return (x > 0) - (x < 0)
