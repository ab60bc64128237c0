"""The view of a product: head, then sections in the order of the page. Sections without data are left out."""

from dataclasses import replace

from minitron_cli.distill.curves import HELD_OUT
from minitron_cli.evaluate.metrics import TEXT_FIGURES
from minitron_cli.figures import Figure
from minitron_cli.report.candidates import candidates_section
from minitron_cli.report.data import ReportData
from minitron_cli.report.evaluation import results_sections, speed_section
from minitron_cli.report.headline import key_figures, lead, share_closed
from minitron_cli.report.importance import channels_section, layers_section
from minitron_cli.report.provenance import commands_section, cost_section, lineage_section
from minitron_cli.report.shapes import serving_section, shape_section
from minitron_cli.report.training import training_section
from minitron_cli.report.view import Cell, Quantity, Section, Table, View
from minitron_cli.results.prune import RepairResult
from minitron_cli.results.training import TrainingResult


def view(data: ReportData) -> View:
    """Everything that is shown of a product."""
    sections = tuple(section for section in _sections(data) if section and not section.is_empty)
    return View(data.title, lead(data), tuple(key_figures(data)), sections)


def _sections(data: ReportData) -> list[Section | None]:
    prune = data.prune
    return [
        *results_sections(data.models),
        speed_section(data.speed) if data.speed else None,
        shape_section(data.model or "parent", prune, data.cache_bytes) if prune else None,
        serving_section(prune) if prune else None,
        channels_section(data.importance),
        layers_section(data.importance),
        candidates_section(data.ranking) if data.ranking else None,
        _repair_section(prune.repair if prune else None),
        training_section(data.runs, data.loss("parent")),
        cost_section(data.costs, data.other_costs, data.device_hours),
        lineage_section(data.lineage),
        commands_section(data.commands),
    ]


def repair_table(found: RepairResult | None) -> Table | None:
    """Loss and KL before and after the repair; None if they were not measured."""
    if found is None or found.effect is None:
        return None
    before, after, parent = found.effect.before, found.effect.after, found.effect.parent_loss
    closed = Figure("gap closed", style="share", better="higher")
    loss, kl = (replace(TEXT_FIGURES[name], style="fixed") for name in ("loss", "kl"))
    rows = (
        _row(loss, before.loss, after.loss, share_closed(before.loss - parent, after.loss - parent)),
        _row(kl, before.kl, after.kl, share_closed(before.kl, after.kl)),
    )
    return Table(
        f"Repair: {', '.join(found.repairs)}", (Figure("held out"), Figure("pruned"), Figure("repaired"), closed), rows
    )


def _row(figure: Figure, before: float | None, after: float | None, *more: Cell) -> tuple[Cell, ...]:
    return (figure.heading, Quantity(figure, before), Quantity(figure, after), *more)


def _repair_section(found: RepairResult | None) -> Section:
    text = "Held-out text before and after the repair, which trains nothing."
    return Section("repair", "Repair", text, tuple(filter(None, [repair_table(found)])))


def training_table(label: str, found: TrainingResult) -> Table:
    """Held-out loss and KL before and after a training."""
    best = f", weights of step {found.weights_of_step:,}" if found.weights_of_step != found.steps else ""
    rows = [
        _row(figure, getattr(found.before, name, None), getattr(found.after, name, None))
        for name, figure in HELD_OUT.items()
        if getattr(found.after, name, None) is not None
    ]
    title = f"{label}: {found.steps:,} steps, {found.tokens:,} tokens{best}"
    return Table(title, tuple(map(Figure, ("held out", "before", "after"))), tuple(rows))
