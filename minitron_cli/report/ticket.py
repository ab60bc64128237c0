"""Tables and plots of tickets and their controls at every sparsity."""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace

from minitron_cli.distill.curves import HELD_OUT
from minitron_cli.evaluate.statistics import mean_of_runs
from minitron_cli.figures import Estimate, Figure
from minitron_cli.report.headline import percent
from minitron_cli.report.view import Cell, Legend, Line, Lines, Plot, Section, Table, View
from minitron_cli.results.ticket import SupermaskResult, TicketResult, TicketRow, TransferResult

Curve = list[tuple[float, float]]

LOSS = HELD_OUT["loss"]
LEFT = Figure("weights left", style="share")
ABOVE = Figure("above dense", LOSS.unit, style="fixed", better="lower", is_change=True)
COLUMNS = (
    Figure("arm"),
    Figure("round", style="count"),
    LEFT,
    LOSS,
    ABOVE,
    Figure("steps to dense loss"),
    Figure("best step", style="count"),
    Figure("distance of kept"),
    Figure("distance of lost"),
)
STEPS = Figure("steps to dense loss", style="count")
DISTANCE = Figure("distance")
MOVED = {"moved_kept": "kept", "moved_lost": "lost"}
BESIDE = {"none": "no mask, initial weights", "trained": "no mask, trained"}
TEXT = "Means over seeds; intervals are 95 % (Student's t)."
HEADINGS = {
    "steps": ("Steps to the dense loss", "How soon a training comes as low as the dense model."),
    "moved": ("Distances", "How far those weights moved that the next round kept, and those that it pruned."),
}


def view(found: TicketResult) -> View:
    """Page of a table of tickets."""
    first, *others = plots(found)
    sections = (
        Section("tickets", "Tickets at every sparsity", TEXT, tuple(tables(found)), *_with_legend(first)),
        *(Section(plot.name, *HEADINGS[plot.name], (), *_with_legend(plot)) for plot in others),
    )
    return View(title(found), headline(found), sections=sections)


def _with_legend(plot: Plot) -> tuple[tuple[Plot], Legend]:
    """Plot of a section, and its legend, which the section shows."""
    return (replace(plot, legend=()),), plot.legend


def headline(found: TicketResult) -> str:
    """The sparsest tickets beside the dense model and the best of the other arms, in one sentence; empty if there are
    none."""
    own = "transferred" if isinstance(found, TransferResult) else "ticket"
    number = max((row.round for row in found.rows if row.arm == own), default=0)
    if not number:
        return ""
    losses = {arm: statistics.mean(row.loss for row in found.of(arm, at)) for arm, at in _groups(found) if at == number}
    best = min(losses.keys() - {own}, key=losses.__getitem__, default=None)
    left = percent(statistics.mean(row.density for row in found.of(own, number)))
    apart, other = (ABOVE.cell(above(found, arm, number)) if arm else "" for arm in (own, best))
    beside = f"; the best of the other arms, {name_of(found, best)}, by {other}" if best else ""
    return f"Tickets with {left} of the weights differ from the dense model's loss by {apart} nats per token{beside}."


def tables(found: TicketResult) -> Iterator[Table]:
    """Every arm after every round, means over seeds with 95 % intervals."""
    described = (
        f"{title(found)}, scope {found.scope}, {found.steps:,} steps each, {found.seeds} "
        f"seed{'s' * (found.seeds != 1)}; distances are those moved in the training before the round (RMS)"
    )
    yield Table(described, COLUMNS, tuple(_row(found, arm, number) for arm, number in _groups(found)))


def title(found: TicketResult) -> str:
    """What the tickets are."""
    return f"Tickets{' found on another text,' * isinstance(found, TransferResult)} rewound to {found.rewind}"


def _groups(found: TicketResult) -> list[tuple[str, int]]:
    """(arm, round) by round, in the order of the first seed."""
    seen = dict.fromkeys((row.round, row.arm) for row in found.rows)
    rounds = sorted({number for number, _ in seen})
    return [(arm, number) for number in rounds for at, arm in seen if at == number]


def _row(found: TicketResult, arm: str, number: int) -> tuple[Cell, ...]:
    rows = found.of(arm, number)
    return (
        name_of(found, arm) if number else "dense",
        number,
        statistics.mean(row.density for row in rows),
        interval([row.loss for row in rows]),
        above(found, arm, number) if number else None,
        _steps(rows) if number else "",
        statistics.mean(row.best_step for row in rows),
        _mean([row.moved_kept for row in rows]),
        _mean([row.moved_lost for row in rows]),
    )


def name_of(found: TicketResult, arm: str) -> str:
    """Name of an arm in tables and plots."""
    return "own ticket" if arm == "ticket" and isinstance(found, TransferResult) else arm


def above(found: TicketResult, arm: str, number: int) -> Estimate:
    """Loss of an arm after a round above the dense model's of the same seed, mean over seeds."""
    dense = {row.seed: row.loss for row in found.of("ticket", 0)}
    return interval([row.loss - dense[row.seed] for row in found.of(arm, number)])


def interval(values: Sequence[float]) -> Estimate:
    """Mean with its 95 % interval by Student's t; without one for a single value."""
    mean, half = mean_of_runs(values)
    return Estimate(mean) if half is None else Estimate(mean, mean - half, mean + half)


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
        density, loss = statistics.mean(row.density for row in some), interval([row.loss for row in some])
        apart = interval([row.loss - found.unigram for row in some])
        rows.append((BESIDE.get(criterion, criterion), density, loss, apart))
    kept = "sign and one size of each matrix" if found.signed_constant else "initial value"
    title = f"Weights that were never trained: {100 * found.keep:.3g}% of each matrix kept, with their {kept}"
    columns = (Figure("mask"), LEFT, LOSS, Figure("above frequencies", LOSS.unit, style="fixed", is_change=True))
    return Table(title, columns, tuple(rows), marked=(1,))


def plots(found: TicketResult) -> list[Plot]:
    """Loss, steps to the dense model's loss and distances that weights moved, against the share that is left."""
    arms = list(dict.fromkeys(row.arm for row in found.rows))
    names = tuple(enumerate(name_of(found, arm) for arm in arms))
    dense = statistics.mean(row.loss for row in found.of("ticket", 0))
    losses, steps = ([_curve(found, arm, name) for arm in arms] for name in ("loss", "steps_to_dense"))
    moved, kinds = [_curve(found, "ticket", name) for name in MOVED], tuple(enumerate(MOVED.values()))
    of_loss = "Held-out loss; the dashed line is the dense model's."
    of_steps = "First evaluated step with the dense model's loss, where all seeds have one."
    of_moved = "Distance (RMS) that weights moved in the training before the round that kept or lost them."
    return [
        *_plot("tickets", losses, LOSS, of_loss, names, dense),
        *_plot("steps", steps, STEPS, of_steps, names),
        *_plot("moved", moved, DISTANCE, of_moved, kinds),
    ]


def _plot(
    name: str, curves: Sequence[Curve], figure: Figure, caption: str, legend: Legend, reference: float | None = None
) -> Iterator[Plot]:
    """Curves against the share of weights that is left; nothing if none has a point."""
    if any(curves):
        lines = tuple(Line(curve, number) for number, curve in enumerate(curves))
        yield Plot(name, Lines(lines, LEFT, figure, reference), caption, legend)


def _curve(found: TicketResult, arm: str, name: str) -> Curve:
    """Mean of a row's figure over seeds against the share of weights left, where every seed has one."""
    numbers = sorted({row.round for row in found.rows if row.arm == arm})
    groups = [found.of(arm, number) for number in numbers]
    return [
        (statistics.mean(row.density for row in rows), statistics.mean(getattr(row, name) for row in rows))
        for rows in groups
        if all(getattr(row, name) is not None for row in rows)
    ]
