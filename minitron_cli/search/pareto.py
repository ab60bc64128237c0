"""Pareto-optimal candidates, and the scores and costs by which candidates are compared."""

from collections.abc import Sequence

from minitron_cli.figures import Figure
from minitron_cli.results.search import CandidateResult
from minitron_cli.search.constraints import figure_of
from minitron_cli.search.constraints.parameters import Parameters

PARAMETERS = Parameters.model_fields["kind"].default


def comparable(candidates: Sequence[CandidateResult]) -> list[CandidateResult]:
    """Candidates whose scores can be compared: those that were retrained, or all if none was."""
    return [candidate for candidate in candidates if candidate.rungs] or list(candidates)


def cost_of(candidate: CandidateResult, cost: str) -> float:
    """Cost of a candidate, by its name (`constraints.cost_names`)."""
    return float(candidate.parameters if cost == PARAMETERS else candidate.costs[cost])


def pareto_optimal(candidates: Sequence[CandidateResult], cost: str, objective: Figure) -> list[bool]:
    """Whether each candidate is Pareto-optimal in (cost, value of the objective after equal training)."""
    cost_sign, value_sign = _sign(figure_of(cost)), _sign(objective)
    points = [(cost_sign * cost_of(c, cost), value_sign * c.at_equal_training) for c in candidates]
    return [not any(_dominates(other, point) for other in points) for point in points]


def _sign(figure: Figure) -> int:
    return -1 if figure.better == "higher" else 1


def _dominates(a: tuple[float, float], b: tuple[float, float]) -> bool:
    """Whether `a` is no worse than `b` in both values, and better in one; lower is better."""
    return a[0] <= b[0] and a[1] <= b[1] and a != b
