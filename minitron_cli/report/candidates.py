"""Candidates of a search or of pruning to a target: ranking, retraining and what quality costs."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from minitron_cli.figures import Figure, count, short
from minitron_cli.report.text import axis_title
from minitron_cli.report.view import Cell, Line, Lines, Plot, Point, Scatter, Section, Table
from minitron_cli.results.search import Candidate, Candidates, Stability
from minitron_cli.search.candidates import comparable, costs_of, cost_of, pareto_optimal, score_of
from minitron_cli.search.constraints import figure_of

SHOWN, DRAWN = 40, 200
RANK = Figure("rank", style="count")
DEVIATION = Figure("against target", style="share", is_change=True)
TAU = Figure("Kendall's tau", style="fixed", better="higher", is_change=True)
TOKENS = Figure("retraining tokens", style="short")


@dataclass(frozen=True)
class Ranking:
    """Candidates of one stage, best first, and which of them were built."""

    found: Candidates
    stability: Mapping[str, Sequence[Stability]]
    """Target -> agreement of each two successive rankings."""
    chosen: Mapping[str, int] | None = None
    """Sizes of the model that was built."""

    @property
    def score(self) -> Figure:
        """Quantity that candidates are ranked by."""
        return Figure(self.found.objective.name, better=self.found.objective.better)

    @property
    def targets(self) -> list[str]:
        """Parameter targets that candidates compete for."""
        return list(dict.fromkeys(row.target for row in self.found.candidates))

    def is_chosen(self, row: Candidate) -> bool:
        """Whether the candidate was built; before that, whether it is the best of its target."""
        if self.chosen is None:
            return row is next(one for one in self.found.candidates if one.target == row.target)
        return row.shape.items() <= self.chosen.items()


def candidates_section(ranking: Ranking | None) -> Section | None:
    """Section on candidates; None if there are none."""
    if ranking is None or not ranking.found.candidates:
        return None
    tables = (candidate_table(ranking), *stability_tables(ranking))
    plots = (*_halving(ranking), *_paretos(ranking))
    return Section("candidates", "Candidate shapes", _about(ranking), tables, plots)


def candidate_table(ranking: Ranking, rows: Sequence[Candidate] | None = None) -> Table:
    """Candidates down, best first; varying axes, costs with their own units, and scores across."""
    shown = list(ranking.found.candidates if rows is None else rows)[:SHOWN]
    optimal = pareto_marks(ranking)
    score, costs = ranking.score, costs_of(shown[0])
    return Table.of_columns(
        "Candidate shapes",
        (RANK, [str(i + 1) for i in range(len(shown))]),
        (Figure("target"), [row.target if len(ranking.targets) > 1 else None for row in shown]),
        *((Figure(axis_title(axis), style="count"), [row.shape.get(axis) for row in shown]) for axis in _varying(shown)),
        *((figure_of(cost), [cost_of(row, cost) for row in shown]) for cost in costs[:1]),
        (DEVIATION, [row.error for row in shown]),
        *((figure_of(cost), [cost_of(row, cost) for row in shown]) for cost in costs[1:]),
        (Figure(f"zero-shot {score.title}", better=score.better), [row.zero_shot for row in shown]),
        (Figure(f"retrained {score.title}", better=score.better), [row.retrained for row in shown]),
        (Figure("Pareto-optimal by"), [", ".join(figure_of(cost).title for cost in optimal[id(row)]) or None for row in shown]),
        marked=[i for i, row in enumerate(shown) if ranking.is_chosen(row)],
    )
