"""Tables and plots of tickets and their controls at every sparsity."""

import math
import statistics
from collections.abc import Iterator, Sequence

from minitron_cli.distill.curves import HELD_OUT
from minitron_cli.evaluate.statistics import CONFIDENCE, student_t
from minitron_cli.figures import Estimate, Figure
from minitron_cli.report.view import Cell, Line, Lines, Plot, Table
from minitron_cli.results.ticket import SupermaskResult, TicketResult, TicketRow, TransferResult

LOSS = HELD_OUT["loss"]
LEFT = Figure("weights left", style="share")
COLUMNS = (
    Figure("arm"),
    Figure("round", style="count"),
    LEFT,
    LOSS,
    Figure("above dense", LOSS.unit, style="fixed", better="lower", is_change=True),
    Figure("steps to dense loss"),
    Figure("best step", style="count"),
    Figure("distance of kept"),
    Figure("distance of lost"),
)


def tables(found: TicketResult) -> Iterator[Table]:
    """Every arm after every round, means over seeds with 95 % intervals."""
    where = " found on another text," if isinstance(found, TransferResult) else ""
    title = (
        f"Tickets{where} rewound to {found.rewind}, scope {found.scope}, {found.steps:,} steps each, {found.seeds} "
        f"seed{'s' * (found.seeds != 1)}; distances are those moved in the training before the round (RMS)"
    )
    yield Table(title, COLUMNS, tuple(_row(found, arm, number) for arm, number in _groups(found)))


def _groups(found: TicketResult) -> list[tuple[str, int]]:
    """(arm, round) by round, in the order of the first seed."""
    seen = dict.fromkeys((row.round, row.arm) for row in found.rows)
    rounds = sorted({number for number, _ in seen})
    return [(arm, number) for number in rounds for at, arm in seen if at == number]


def _row(found: TicketResult, arm: str, number: int) -> tuple[Cell, ...]:
    rows, dense = found.of(arm, number), {row.seed: row.loss for row in found.of("ticket", 0)}
    above = [row.loss - dense[row.seed] for row in rows]
    return (
        name_of(found, arm) if number else "dense",
        number,
        statistics.mean(row.density for row in rows),
        interval([row.loss for row in rows]),
        interval(above) if number else None,
        _steps(rows) if number else "",
        statistics.mean(row.best_step for row in rows),
        _mean([row.moved_kept for row in rows]),
        _mean([row.moved_lost for row in rows]),
    )


def name_of(found: TicketResult, arm: str) -> str:
    """Name of an arm in tables and plots."""
    return "own ticket" if arm == "ticket" and isinstance(found, TransferResult) else arm


def interval(values: Sequence[float]) -> Estimate:
    """Mean with its 95 % interval by Student's t; without one for a single value."""
    mean = statistics.mean(values)
    if len(values) == 1:
        return Estimate(mean)
    half = student_t(CONFIDENCE, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return Estimate(mean, mean - half, mean + half)


def _steps(rows: Sequence[TicketRow]) -> str:
    """Median step that reaches the dense loss, and for how many seeds there is one."""
    reached = [row.steps_to_dense for row in rows if row.steps_to_dense is not None]
    if not reached:
        return "never"
    some = "" if len(reached) == len(rows) else f", {len(reached)} of {len(rows)} seeds"
    return f"{statistics.median_low(reached):,}{some}"


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.mean(known) if known else None


def supermask_table(found: SupermaskResult) -> Table:
    """Every criterion beside what it is to beat, means over seeds with 95 % intervals; the unigram row stands out."""
    rows: list[tuple[Cell, ...]] = [
        ("equal probabilities", None, found.uniform, None),
        ("frequencies of tokens", None, found.unigram, 0.0),
    ]
    for criterion in dict.fromkeys(row.criterion for row in found.rows):
        some = [row for row in found.rows if row.criterion == criterion]
        above = interval([row.loss - found.unigram for row in some])
        density = statistics.mean(row.density for row in some)
        rows.append((BESIDE.get(criterion, criterion), density, interval([row.loss for row in some]), above))
    kept = "sign and one size of each matrix" if found.signed_constant else "initial value"
    title = f"Weights that were never trained: {found.keep:.0%} of each matrix kept, with their {kept}"
    columns = (Figure("mask"), LEFT, LOSS, Figure("above frequencies", LOSS.unit, style="fixed", is_change=True))
    return Table(title, columns, tuple(rows), marked=(1,))


BESIDE = {"none": "no mask, initial weights", "trained": "no mask, trained"}


def plots(found: TicketResult) -> list[Plot]:
    """Held-out loss against the share of weights that is left, an arm per line; dashed: the dense model's."""
    arms = list(dict.fromkeys(row.arm for row in found.rows))
    lines = tuple(Line(_curve(found, arm), i) for i, arm in enumerate(arms))
    dense = statistics.mean(row.loss for row in found.of("ticket", 0))
    caption = "Held-out loss after each round; the dashed line is the dense model's"
    return [
        Plot("tickets", Lines(lines, LEFT, LOSS, dense), caption, tuple(enumerate(name_of(found, arm) for arm in arms)))
    ]


def _curve(found: TicketResult, arm: str) -> list[tuple[float, float]]:
    groups = [found.of(arm, number) for number in sorted({row.round for row in found.rows if row.arm == arm})]
    return [
        (statistics.mean(row.density for row in rows), statistics.mean(row.loss for row in rows)) for rows in groups
    ]
