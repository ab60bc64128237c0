"""Ranked candidates as the search and the prune stage store them, and with measured costs when they are read."""

from collections.abc import Iterable, Sequence

from minitron_cli.artifacts.artifact import Artifact
from minitron_cli.cost.compute import model_size
from minitron_cli.results.search import CandidateResult, ObjectiveResult
from minitron_cli.search.config import SearchConfig, TaskObjective, objective_figure
from minitron_cli.search.rank import RankedCandidate


def candidate_result(
    entry: RankedCandidate,
    sequence_length: int,
    *,
    factor: int = 1,
    target: str = "",
    repairs: Iterable[str] = (),
    retrained_repairs: Iterable[str] = (),
    measured: Sequence[str] = (),
) -> CandidateResult:
    """Candidate as it is stored. `factor` is -1 if a higher value of the objective is better. Costs whose names are in
    `measured` are left out, as measured times are not part of a result."""
    candidate = entry.candidate
    return CandidateResult(
        target=target,
        shape=candidate.shape.prunable,
        parameters=candidate.parameters,
        error=candidate.error,
        costs={name: cost for name, cost in candidate.costs.items() if name not in measured},
        zero_shot=factor * entry.zero_shot,
        rungs=tuple(factor * score for score in entry.rungs),
        model=model_size(candidate.shape, sequence_length),
        repairs=tuple(sorted(repairs)),
        retrained_repairs=tuple(sorted(retrained_repairs)),
    )


def objective_result(config: SearchConfig) -> ObjectiveResult:
    """Name and direction of the objective that a search ranks candidates by."""
    objective = config.objective
    name = objective.name if isinstance(objective, TaskObjective) else objective
    return ObjectiveResult(name=name, better=objective_figure(objective).better or "lower")


def with_measured_costs(artifact: Artifact, candidates: Sequence[CandidateResult]) -> list[CandidateResult]:
    """Candidates of an artifact with their measured costs, as far as the run record has them."""
    measured = artifact.run.measured if artifact.run else {}
    return [c.model_copy(update={"costs": {**c.costs, **measured.get(c.key, {})}}) for c in candidates]
