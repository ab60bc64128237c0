"""Candidates of a search or of pruning to a target: ranking, retraining and what quality costs."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from minitron_cli.evaluate.metrics import TEXT_FIGURES
from minitron_cli.figures import Figure, count, short
from minitron_cli.report.text import axis_title
from minitron_cli.report.view import Cell, Line, Lines, Plot, Point, Scatter, Section, Table
from minitron_cli.results.base import Sizes
from minitron_cli.results.prune import PruneResult
from minitron_cli.results.run_record import RunRecord
from minitron_cli.results.search import CandidateResult, ObjectiveResult, SearchResult, WinnerResult
from minitron_cli.search.constraints import cost_figure
from minitron_cli.search.feasible import OFF_TARGET, RETAINED_IMPORTANCE

SHOWN, DRAWN = 40, 200
PARAMETERS, RETAINED = "parameters", "mass"
RANK = Figure("rank", style="count")
TAU = Figure("Kendall's tau", style="fixed", better="higher", is_change=True)
TOKENS = Figure("retraining tokens", style="short")


@dataclass(frozen=True)
class Ranking:
    """Candidates of one stage, best first."""

    candidates: Sequence[CandidateResult]
    objective: ObjectiveResult = field(default_factory=ObjectiveResult)
    rung_tokens: Sequence[int] = ()
    winners: Mapping[str, WinnerResult] = field(default_factory=dict)
    measured: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Shape of a candidate -> kind of constraint -> measured cost."""
    built: Sizes | None = None
    """Sizes of the model that was built; None before that."""

    @classmethod
    def of(cls, result: SearchResult | PruneResult, run: RunRecord, built: Sizes | None = None) -> "Ranking":
        """Candidates of a search, or of pruning to a target."""
        if isinstance(result, PruneResult):
            return cls(result.candidates, built=built or result.child.sizes)
        found = (result.candidates, result.objective, result.rung_tokens, result.winners)
        return cls(*found, run.measured, built)

    @property
    def score(self) -> Figure:
        """Quantity that candidates are ranked by."""
        figure = TEXT_FIGURES.get(self.objective.name, Figure(self.objective.name))
        return replace(figure, better=self.objective.better)

    @property
    def plotted_score(self) -> Figure:
        """The same without a name that a user chose: a task's."""
        return TEXT_FIGURES.get(self.objective.name, Figure("score"))

    @property
    def targets(self) -> list[str]:
        """Parameter targets that the candidates compete for."""
        return list(dict.fromkeys(row.target for row in self.candidates))

    @property
    def comparable(self) -> list[CandidateResult]:
        """Candidates whose scores compare: the retrained ones if there are any, else all."""
        return [row for row in self.candidates if row.rungs] or list(self.candidates)

    def costs(self, row: CandidateResult) -> dict[str, float]:
        """Kind of constraint -> cost of a candidate, parameters first."""
        found = {**row.costs, **self.measured.get(row.key, {})}
        return {PARAMETERS: float(row.parameters), **{kind: cost for kind, cost in found.items() if kind != RETAINED}}

    def is_chosen(self, row: CandidateResult) -> bool:
        """Whether the candidate was built; before that, whether it is the best for its target."""
        if self.built is None:
            return row is next(one for one in self.candidates if one.target == row.target)
        return row.shape.items() <= self.built.items()

    def optimal(self, kind: str) -> set[int]:
        """Numbers of the comparable candidates that are Pareto-optimal in (cost, score)."""
        signs = [-1 if better == "higher" else 1 for better in (cost_figure(kind).better, self.objective.better)]
        points = [(signs[0] * self.costs(row)[kind], signs[1] * row.at_equal_training) for row in self.comparable]
        front = pareto_front(points)
        return {i for i, point in enumerate(points) if point in front}


def pareto_front(points: Iterable[tuple[float, float]]) -> set[tuple[float, float]]:
    """Points that no other point is at most equal to in both coordinates and below in one."""
    front: set[tuple[float, float]] = set()
    best = math.inf
    for point in sorted(points):
        if point[1] < best:
            front.add(point)
            best = point[1]
    return front


def candidate_tables(ranking: Ranking) -> list[Table]:
    """Candidates, their scores at each rung and the stability of the ranking; per target if there are several."""
    tables = []
    for target in ranking.targets:
        rows = [row for row in ranking.candidates if row.target == target]
        found = [_candidates(ranking, rows), *_rungs(ranking, rows), *_stability(ranking, target)]
        tables += [replace(one, title=f"{one.title}, target {target}") for one in found] if target else found
    return tables


def _candidates(ranking: Ranking, rows: Sequence[CandidateResult]) -> Table:
    shown, score = rows[:SHOWN], ranking.score
    kinds = list(ranking.costs(shown[0]))
    return Table.of_columns(
        "Candidates, best first",
        (RANK, _ranks(shown)),
        *((Figure(axis_title(axis), style="count"), [row.shape.get(axis) for row in shown]) for axis in _varying(rows)),
        *((cost_figure(kind), [ranking.costs(row).get(kind) for row in shown]) for kind in kinds),
        (replace(OFF_TARGET, is_change=True), [row.error for row in shown]),
        (RETAINED_IMPORTANCE, [math.exp(row.costs[RETAINED]) if RETAINED in row.costs else None for row in shown]),
        (replace(score, title=f"zero-shot {score.title}"), [row.zero_shot for row in shown]),
        (replace(score, title=f"retrained {score.title}"), [row.retrained for row in shown]),
        (Figure("Pareto-optimal by"), _pareto_marks(ranking, shown, kinds)),
        marked=[i for i, row in enumerate(shown) if ranking.is_chosen(row)],
    )


def _pareto_marks(ranking: Ranking, rows: Sequence[CandidateResult], kinds: Sequence[str]) -> list[Cell]:
    """Titles of the costs in which each row is Pareto-optimal."""
    places = {id(row): i for i, row in enumerate(ranking.comparable)}
    optimal = {cost_figure(kind).title: ranking.optimal(kind) for kind in kinds}
    return [
        ", ".join(title for title, found in optimal.items() if places.get(id(row)) in found) or None for row in rows
    ]


def _ranks(rows: Sequence[CandidateResult]) -> list[Cell]:
    return [str(i + 1) for i in range(len(rows))]


def _varying(rows: Sequence[CandidateResult]) -> list[str]:
    axes = list(rows[0].shape)
    return [axis for axis in axes if len({row.shape.get(axis) for row in rows}) > 1] or axes


def _rungs(ranking: Ranking, rows: Sequence[CandidateResult]) -> Iterator[Table]:
    """Score of each retrained candidate at each rung."""
    places = [i for i, row in enumerate(rows[:SHOWN]) if row.rungs]
    scores = [(rows[i].zero_shot, *rows[i].rungs) for i in places]
    titles = ("zero-shot", *(f"{short(tokens)} tokens" for tokens in ranking.rung_tokens))
    columns = [
        (replace(ranking.score, title=title), [row[i] if i < len(row) else None for row in scores])
        for i, title in enumerate(titles)
    ]
    if places:
        name = ranking.score.title
        yield Table.of_columns(f"Retraining, {name} at each rung", (RANK, [str(i + 1) for i in places]), *columns)


def _stability(ranking: Ranking, target: str) -> Iterator[Table]:
    winner = ranking.winners.get(target) or next(iter(ranking.winners.values()), None)
    rows = [(f"{x.before} to {x.after}", x.tau, x.candidates) for x in (winner.stability if winner else ())]
    if rows:
        columns = (Figure("rankings"), TAU, Figure("candidates", style="count"))
        yield Table("Rank stability", columns, tuple(rows))


def candidates_section(ranking: Ranking | None) -> Section | None:
    """Section on candidates; None if there are none."""
    if ranking is None or not ranking.candidates:
        return None
    plots = (*_halving(ranking), *_paretos(ranking))
    return Section("candidates", "Candidate shapes", _about(ranking), tuple(candidate_tables(ranking)), plots)


def _about(ranking: Ranking) -> str:
    text = f"{count(len(ranking.candidates))} shapes that meet every constraint, best first (zero-shot: untrained)."
    if any(row.rungs for row in ranking.candidates):
        text += " The best few were retrained briefly and ranked again, because training can change the order."
    text += " The shape that was built is highlighted." if ranking.built else " The best shape is highlighted."
    if len(ranking.candidates) > SHOWN:
        text += f" Tables show the first {SHOWN}."
    return text


def _halving(ranking: Ranking) -> Iterator[Plot]:
    lines = tuple(
        Line((0, *ranking.rung_tokens[: len(row.rungs)]), (row.zero_shot, *row.rungs), 1 if chosen else 2, chosen)
        for row, chosen in ((row, ranking.is_chosen(row)) for row in ranking.candidates)
        if row.rungs
    )
    if lines:
        caption = f"{_name(ranking)} in retraining, a line per candidate until it was dropped."
        yield Plot("halving", Lines(lines[:SHOWN], TOKENS, ranking.plotted_score), caption)


def _paretos(ranking: Ranking) -> Iterator[Plot]:
    """Score against each cost, of candidates that had equal training."""
    rows = ranking.comparable[:DRAWN]
    for i, kind in enumerate(ranking.costs(rows[0]) if len(rows) > 1 else ()):
        figure, optimal = cost_figure(kind), ranking.optimal(kind)
        points = tuple(
            Point(ranking.costs(row)[kind], row.at_equal_training, ranking.is_chosen(row), place in optimal)
            for place, row in enumerate(rows)
        )
        when = "after the first rung" if rows[0].rungs else "zero-shot"
        caption = f"{_name(ranking)} {when} against {figure.title}; a ring marks the choice, the line the Pareto front."
        yield Plot(f"candidates-{i}", Scatter(points, figure, ranking.plotted_score), caption)


def _name(ranking: Ranking) -> str:
    title = ranking.score.title
    return title[:1].upper() + title[1:]
