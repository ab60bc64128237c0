"""Ranking of candidates: by zero-shot score, then by their scores while they are lightly retrained. Lower is better."""

# N item

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from minitron_cli.results.search import StabilityResult
from minitron_cli.search.feasible import Candidate

Score = Callable[[Candidate], float]  # lower is better, such as a loss in nats


@dataclass(frozen=True)
class RankedCandidate:
    """A candidate with the scores that have been measured."""

    candidate: Candidate
    zero_shot: float
    rungs: tuple[float, ...] = ()
    """Score at each rung of retraining that it reached."""

    @property
    def retrained(self) -> float | None:
        """Score at the last rung that it reached."""
        return self.rungs[-1] if self.rungs else None


def by_zero_shot(candidates: Sequence[Candidate], score: Score) -> list[RankedCandidate]:
    """Candidates with their scores before any training, best first; ties are ordered by name."""
    ranked = [RankedCandidate(candidate, score(candidate)) for candidate in candidates]
    return sorted(ranked, key=lambda r: (r.zero_shot, r.candidate.name))


def by_retraining(ranked: Sequence[RankedCandidate]) -> list[RankedCandidate]:
    """Ranking by last rung reached, then by the score there; candidates without retraining follow in their order."""
    retrained = [entry for entry in ranked if entry.rungs]
    retrained.sort(key=lambda r: (-len(r.rungs), r.rungs[-1], r.candidate.name))
    return [*retrained, *(entry for entry in ranked if not entry.rungs)]


def kendall_tau(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Kendall's tau-a of two scores of the same items: 1 same order, -1 reversed. None for fewer than two items.

    scipy has tau-b and tau-c only. Tau-b divides by the untied pairs, so it is undefined if one score ties everywhere,
    which task accuracies of a few candidates do; in tau-a a tied pair counts as no agreement.
    """
    first, second = np.triu_indices(len(a), k=1)
    if not len(first):
        return None
    a_N, b_N = np.asarray(a, float), np.asarray(b, float)
    agreement = np.sign(a_N[first] - a_N[second]) * np.sign(b_N[first] - b_N[second])
    return float(agreement.sum() / len(agreement))


def stability(ranked: Sequence[RankedCandidate]) -> list[StabilityResult]:
    """Kendall's tau of each two successive scores of a final ranking, and of the zero-shot with the final order.

    Each is taken over the candidates that have both scores; comparisons of fewer than two are left out.
    """
    retrained = [entry for entry in ranked if entry.rungs]
    found = [_agreement("zero-shot", "rung 1", [(e.zero_shot, e.rungs[0]) for e in retrained])]
    for i in range(1, max((len(entry.rungs) for entry in retrained), default=0)):
        both = [(e.rungs[i - 1], e.rungs[i]) for e in retrained if len(e.rungs) > i]
        found.append(_agreement(f"rung {i}", f"rung {i + 1}", both))
    found.append(_agreement("zero-shot", "final order", [(e.zero_shot, float(i)) for i, e in enumerate(retrained)]))
    return [agreement for agreement in found if agreement]


def _agreement(before: str, after: str, pairs: Sequence[tuple[float, float]]) -> StabilityResult | None:
    tau = kendall_tau([a for a, _ in pairs], [b for _, b in pairs])
    return None if tau is None else StabilityResult(before=before, after=after, candidates=len(pairs), tau=tau)
