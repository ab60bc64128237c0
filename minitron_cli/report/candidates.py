"""Candidates of a search or of pruning to a target: ranking, retraining and what quality costs."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from minitron_cli.artifacts.artifact import Artifact
from minitron_cli.figures import Figure, count, short
from minitron_cli.report.text import axis_title, capitalized
from minitron_cli.report.view import Cell, Line, Lines, Plot, Section, Table
from minitron_cli.results.base import Sizes
from minitron_cli.results.prune import PruneResult
from minitron_cli.results.search import CandidateResult, ObjectiveResult, SearchResult, WinnerResult
from minitron_cli.search.candidates import with_measured_costs
from minitron_cli.search.config import OBJECTIVE_FIGURES
from minitron_cli.search.constraints import figure_of
from minitron_cli.search.feasible import OFF_TARGET, RETAINED_IMPORTANCE
from minitron_cli.search.pareto import PARAMETERS, comparable, cost_of, pareto_optimal

SHOWN, DRAWN = 40, 200
RETAINED = "log_retained"
RANK = Figure("rank", style="count")
TAU = Figure("Kendall's tau", style="fixed", better="higher", is_change=True)
TOKENS = Figure("retraining tokens", style="short")


@dataclass(frozen=True)
class Ranking:
    """Candidates of one stage, best first, with measured costs."""

    candidates: Sequence[CandidateResult]
    objective: ObjectiveResult = field(default_factory=ObjectiveResult)
    rung_tokens: Sequence[int] = ()
    winners: Mapping[str, WinnerResult] = field(default_factory=dict)
    built: Sizes | None = None
    """Sizes of the model that was built; None before that."""

    @classmethod
    def of(cls, artifact: Artifact, built: Sizes | None = None) -> "Ranking":
        """Candidates of a search artifact, or of one pruned to a target."""
        if artifact.stage == "prune":
            pruned = artifact.result(PruneResult)
            return cls(with_measured_costs(artifact, pruned.candidates), built=built or pruned.child.sizes)
        found = artifact.result(SearchResult)
        rows = with_measured_costs(artifact, found.candidates)
        return cls(rows, found.objective, found.rung_tokens, found.winners, built)

    @property
    def score(self) -> Figure:
        """Quantity that candidates are ranked by."""
        figure = OBJECTIVE_FIGURES.get(self.objective.name, Figure(self.objective.name))
        return replace(figure, better=self.objective.better)

    @property
    def plotted_score(self) -> Figure:
        """The same without a name that a user chose: a task's."""
        return OBJECTIVE_FIGURES.get(self.objective.name, Figure("score"))

    @cached_property
    def costs(self) -> list[str]:
        """Names of the costs by which candidates are compared."""
        return [PARAMETERS, *(name for name in self.candidates[0].costs if name != RETAINED)]

    @cached_property
    def optimal(self) -> dict[str, set[int]]:
        """Cost -> `id` of the candidates that are Pareto-optimal in it and the score."""
        rows = comparable(self.candidates)
        marks = {cost: pareto_optimal(rows, cost, self.score) for cost in self.costs}
        return {cost: {id(row) for row, mark in zip(rows, some, strict=True) if mark} for cost, some in marks.items()}

    def is_chosen(self, row: CandidateResult) -> bool:
        """Whether the candidate was built; before that, whether it is the best for its target."""
        if self.built is None:
            return row is next(one for one in self.candidates if one.target == row.target)
        return row.shape.items() <= self.built.items()


def candidate_tables(ranking: Ranking) -> list[Table]:
    """Candidates with their scores, and the stability of the ranking; per target if there are several."""
    tables = []
    for target in dict.fromkeys(row.target for row in ranking.candidates):
        rows = [row for row in ranking.candidates if row.target == target]
        found = [_candidates(ranking, rows), _stability(ranking, target)]
        tables += [
            replace(one, title=f"{one.title}, target {_size(target)}") if target else one for one in found if one.rows
        ]
    return tables


def _size(target: str) -> str:
    """A target as it is said: `1.60 M` for 1600000, and `75%` as it is."""
    return short(int(target)) if target.isdigit() else target


def _candidates(ranking: Ranking, rows: Sequence[CandidateResult]) -> Table:
    shown, score, axes = rows[:SHOWN], ranking.score, list(rows[0].shape)
    varying = [axis for axis in axes if len({row.shape.get(axis) for row in rows}) > 1] or axes
    optimal = {figure_of(cost).title: some for cost, some in ranking.optimal.items()}
    pareto = [", ".join(title for title, some in optimal.items() if id(row) in some) or None for row in shown]
    return Table.of_columns(
        "Candidates, best first",
        (RANK, [str(i + 1) for i in range(len(shown))]),
        *((Figure(axis_title(axis), style="count"), [row.shape.get(axis) for row in shown]) for axis in varying),
        *((figure_of(cost), [cost_of(row, cost) for row in shown]) for cost in ranking.costs),
        (replace(OFF_TARGET, is_change=True), [row.error for row in shown]),
        (RETAINED_IMPORTANCE, [math.exp(row.costs[RETAINED]) if RETAINED in row.costs else None for row in shown]),
        (replace(score, title=f"zero-shot {score.title}"), [row.zero_shot for row in shown]),
        *(_rung(score, tokens, i, shown) for i, tokens in enumerate(ranking.rung_tokens)),
        (Figure("Pareto-optimal by"), pareto),
        marked=[i for i, row in enumerate(shown) if ranking.is_chosen(row)],
    )


def _rung(score: Figure, tokens: int, rung: int, rows: Sequence[CandidateResult]) -> tuple[Figure, list[Cell]]:
    figure = replace(score, title=f"retrained {score.title}, {short(tokens)} tokens")
    return figure, [row.rungs[rung] if rung < len(row.rungs) else None for row in rows]


def _stability(ranking: Ranking, target: str) -> Table:
    winner = ranking.winners.get(target) or next(iter(ranking.winners.values()), None)
    rows = [(f"{x.before} to {x.after}", x.tau, x.candidates) for x in (winner.stability if winner else ())]
    return Table("Rank stability", (Figure("rankings"), TAU, Figure("candidates", style="count")), rows)


def candidates_section(ranking: Ranking) -> Section:
    """Section on candidates."""
    text = f"{count(len(ranking.candidates))} shapes that meet every constraint, best first "
    text += f"(zero-shot: {_state(ranking)})."
    if any(row.rungs for row in ranking.candidates):
        text += " The best few were retrained briefly and ranked again, because training can change the order."
    text += " The shape that was built is highlighted." if ranking.built else " The best shape is highlighted."
    if len(ranking.candidates) > SHOWN:
        text += f" Tables show the first {SHOWN}."
    plots = (*_halving(ranking), *_paretos(ranking))
    return Section("candidates", "Candidate shapes", text, tuple(candidate_tables(ranking)), plots)


def _state(ranking: Ranking) -> str:
    """State of the candidates when they were scored zero-shot."""
    repairs = sorted({repair for row in ranking.candidates for repair in row.repairs})
    return f"untrained, {' and '.join(repairs).replace('_', ' ')} applied" if repairs else "untrained, not repaired"


def _halving(ranking: Ranking) -> Iterator[Plot]:
    """Score of every retrained candidate after each rung."""
    lines = tuple(_curve(row, ranking) for row in ranking.candidates if row.rungs)[:SHOWN]
    if any(len(line.points) > 1 for line in lines):
        caption = f"{capitalized(ranking.score.title)} in retraining, a line per candidate until it was dropped."
        yield Plot("halving", Lines(lines, TOKENS, ranking.plotted_score), caption)


def _curve(row: CandidateResult, ranking: Ranking) -> Line:
    """Tokens and score at each rung; from zero tokens on if the candidate was not repaired further in between."""
    tokens, scores = ranking.rung_tokens, row.rungs
    if row.repairs == row.retrained_repairs:
        tokens, scores = (0, *tokens), (row.zero_shot, *scores)
    points = list(zip(tokens, scores, strict=False))
    return Line(points, 1) if ranking.is_chosen(row) else Line(points, 2, "faint")


def _paretos(ranking: Ranking) -> Iterator[Plot]:
    """Score against each cost, of candidates that had equal training."""
    rows = comparable(ranking.candidates)[:DRAWN]
    for i, cost in enumerate(ranking.costs if len(rows) > 1 else ()):
        figure, optimal = figure_of(cost), ranking.optimal[cost]
        points = {id(row): (cost_of(row, cost), row.at_equal_training) for row in rows}
        series = (
            Line(sorted(points[id(row)] for row in rows if id(row) in optimal), 5, "dashed"),
            Line(list(points.values()), 2, "points"),
            Line([points[id(row)] for row in rows if ranking.is_chosen(row)], 1, "rings"),
        )
        when = "after the first rung" if rows[0].rungs else "zero-shot"
        name = capitalized(ranking.score.title)
        caption = f"{name} {when} against {figure.title}; a ring marks the choice, the line the Pareto front."
        yield Plot(f"candidates-{i}", Lines(series, figure, ranking.plotted_score), caption)
