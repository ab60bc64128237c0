"""Curves of trainings."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from minitron_cli.distill.curves import HELD_OUT
from minitron_cli.figures import Figure
from minitron_cli.report.evaluation import TOKENS
from minitron_cli.report.text import capitalized
from minitron_cli.report.view import Line, Lines, Plot, Section

Rows = Sequence[Mapping[str, float]]


@dataclass(frozen=True)
class TrainingRun:
    """Curves of one training: a row per step and a row per evaluation, each with its `tokens`."""

    label: str
    steps: Rows
    losses: Mapping[str, Figure]
    """Column of `steps` -> quantity."""
    validation: Rows


def training_section(runs: Sequence[TrainingRun], parent_loss: float | None) -> Section:
    """Section with a plot per measured column, a line per run."""
    losses = {column: figure for run in runs for column, figure in run.losses.items()}
    plots = (
        *_plots("validation", [run.validation for run in runs], HELD_OUT, parent_loss),
        *_plots("training", [run.steps for run in runs], losses),
    )
    count = "the training run" if len(runs) == 1 else f"the {len(runs)} training runs"
    text = f"Progress of {count}, against the number of training tokens."
    legend = tuple((i, run.label) for i, run in enumerate(runs))
    return Section("training", "Training", text, plots=plots, legend=legend)


def _plots(
    name: str, runs: Sequence[Rows], figures: Mapping[str, Figure], parent_loss: float | None = None
) -> Iterator[Plot]:
    for i, (column, figure) in enumerate(figures.items()):
        reference = parent_loss if column == "loss" else None
        points = [[(row["tokens"], row[column]) for row in rows if column in row] for rows in runs]
        if lines := tuple(Line(known, number) for number, known in enumerate(points) if known):
            caption = capitalized(figure.title) + ("." if reference is None else "; the dashed line is the parent's.")
            yield Plot(f"{name}-{i}", Lines(lines, TOKENS, figure, reference), caption)
