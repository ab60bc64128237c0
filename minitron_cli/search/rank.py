"""Order candidates: by a zero-shot score, then by their scores while they are lightly retrained. Lower is better."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from minitron_cli.search.feasible import Candidate

Score = Callable[[Candidate], float]  # lower is better: a loss in nats, say


@dataclass(frozen=True)
class RankedCandidate:
    """A candidate with what is known of its quality."""

    candidate: Candidate
    zero_shot: float
    rungs: tuple[float, ...] = ()
    """Its score at each rung that it reached."""

    @property
    def retrained(self) -> float | None:
        return self.rungs[-1] if self.rungs else None


def by_zero_shot(candidates: Sequence[Candidate], score: Score) -> list[RankedCandidate]:
    """Score every candidate as cut, best first."""
    ranked = [RankedCandidate(candidate, score(candidate)) for candidate in candidates]
    return sorted(ranked, key=lambda r: (r.zero_shot, r.candidate.name))


def by_retraining(ranked: Sequence[RankedCandidate]) -> list[RankedCandidate]:
    """Those that got furthest first, by the score there; those that were not retrained stay in their order."""
    retrained = [entry for entry in ranked if entry.rungs]
    retrained.sort(key=lambda r: (-len(r.rungs), r.rungs[-1], r.candidate.name))
    return [*retrained, *(entry for entry in ranked if not entry.rungs)]


def kendall_tau(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Kendall's tau-a of two scores of the same items: 1 same order, -1 reversed. None for fewer than two."""
    pairs = [(i, j) for i in range(len(a)) for j in range(i)]
    if not pairs:
        return None
    return sum(_sign(a[i] - a[j]) * _sign(b[i] - b[j]) for i, j in pairs) / len(pairs)


def stability(ranked: Sequence[RankedCandidate]) -> list[dict[str, object]]:
    """Kendall's tau of every two neighbouring scores of a ranking, and of the first with the last order.

    `ranked` is the final order. Each row says over how many candidates: those that have both scores.
    """
    retrained = [entry for entry in ranked if entry.rungs]
    rows = [_row("zero-shot", "rung 1", [(e.zero_shot, e.rungs[0]) for e in retrained])]
    for i in range(1, max((len(entry.rungs) for entry in retrained), default=0)):
        both = [(e.rungs[i - 1], e.rungs[i]) for e in retrained if len(e.rungs) > i]
        rows.append(_row(f"rung {i}", f"rung {i + 1}", both))
    rows.append(_row("zero-shot", "final order", [(e.zero_shot, float(i)) for i, e in enumerate(retrained)]))
    return [row for row in rows if row["tau"] is not None]


def _row(before: str, after: str, pairs: Sequence[tuple[float, float]]) -> dict[str, object]:
    first, second = [a for a, _ in pairs], [b for _, b in pairs]
    return {"from": before, "to": after, "candidates": len(pairs), "tau": kendall_tau(first, second)}


def _sign(x: float) -> int:
    return (x > 0) - (x < 0)
