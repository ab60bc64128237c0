"""Curves of trainings."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from minitron_cli.figures import Figure
from minitron_cli.report.view import Line, Lines, Plot, Section

TOKENS = Figure("training tokens", style="short")
LOSS = "loss"

Rows = Sequence[Mapping[str, float]]


@dataclass(frozen=True)
class Curves:
    """Columns measured while training, a row per step or evaluation; each row has its `tokens`."""

    rows: Rows
    figures: Mapping[str, Figure]
    """Column -> quantity."""


@dataclass(frozen=True)
class TrainingRun:
    """One training."""

    label: str
    steps: Curves
    validation: Curves


def training_section(runs: Sequence[TrainingRun], parent_loss: float | None) -> Section | None:
    """Section with a plot per measured column, a line per run; None without runs."""
    if not runs:
        return None
    plots = (
        *_plots("validation", [run.validation for run in runs], parent_loss),
        *_plots("training", [run.steps for run in runs]),
    )
    count = "the training run" if len(runs) == 1 else f"the {len(runs)} training runs"
    text = f"Progress of {count}, against the number of training tokens."
    legend = tuple((i, run.label) for i, run in enumerate(runs))
    return Section("training", "Training", text, plots=plots, legend=legend)


def _plots(name: str, runs: Sequence[Curves], parent_loss: float | None = None) -> Iterator[Plot]:
    figures = {column: figure for curves in runs for column, figure in curves.figures.items()}
    for i, (column, figure) in enumerate(figures.items()):
        reference = parent_loss if column == LOSS else None
        lines = tuple(_line(curves.rows, column, number) for number, curves in enumerate(runs))
        if lines := tuple(line for line in lines if len(line.y)):
            caption = f"{figure.title[:1].upper()}{figure.title[1:]}"
            caption += "." if reference is None else "; the dashed line is the parent's."
            yield Plot(f"{name}-{i}", Lines(lines, TOKENS, figure, reference), caption)


def _line(rows: Rows, column: str, color: int) -> Line:
    measured = [row for row in rows if column in row]
    return Line([row["tokens"] for row in measured], [row[column] for row in measured], color)
