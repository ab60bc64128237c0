"""The view of a product: head, then sections in the order of the page. Sections without data are left out."""

from collections.abc import Iterator
from dataclasses import replace

from minitron_cli.distill.curves import HELD_OUT
from minitron_cli.evaluate.metrics import KL, LOSS
from minitron_cli.figures import Estimate, Figure
from minitron_cli.report import sparsity
from minitron_cli.report.candidates import candidates_section
from minitron_cli.report.data import ReportData
from minitron_cli.report.evaluation import results_section, speed_section
from minitron_cli.report.headline import headline, key_figures, lead, share_closed
from minitron_cli.report.importance import channels_section, layers_section
from minitron_cli.report.provenance import cost_section, lineage_section
from minitron_cli.report.quality import quality_section
from minitron_cli.report.scratch import scratch_section
from minitron_cli.report.shapes import serving_section, shape_section
from minitron_cli.report.training import training_section
from minitron_cli.report.view import Cell, Section, Table, View
from minitron_cli.results.prune import RepairResult
from minitron_cli.results.training import TrainingResult

REPAIR = "Held-out text before and after the repair, which trains nothing."
REPRODUCE = "These commands make the same results again; on a CPU, byte for byte."


def view(data: ReportData) -> View:
    """Everything that is shown of a product."""
    prune, earlier_steps = data.prune, len(data.sizes) - 2
    parent = (data.model or "parent") + (f" after step {earlier_steps}" if earlier_steps > 0 else "")
    repairs = tuple(repair_tables(prune.repair if prune else None))
    sections = (
        shape_section(parent, prune, data.cache_bytes, data.kept) if prune else None,
        quality_section(data.models, data.speed),
        results_section(data.models, data.to_evaluate),
        scratch_section(data.scratch),
        speed_section(data.speed) if data.speed else None,
        serving_section(prune) if prune else None,
        channels_section(data.importance),
        layers_section(data.importance),
        candidates_section(data.ranking) if data.ranking else None,
        Section("repair", "Repair", REPAIR, repairs),
        sparsity.section(data.sparsity) if data.sparsity else None,
        training_section(data.runs, data.loss("parent")),
        cost_section(data.costs, data.other_costs, data.device_hours),
        lineage_section(data.lineage),
        Section("reproduce", "Reproduce", f"{REPRODUCE} {data.texts}".strip(), code="\n".join(data.commands)),
    )
    shown = tuple(section for section in sections if section and not section.is_empty)
    return View(data.title, headline(data), lead(data), tuple(key_figures(data)), shown)


def repair_tables(found: RepairResult | None) -> Iterator[Table]:
    """Loss and KL before and after the repair, if they were measured."""
    if found and (effect := found.effect):
        before, after, parent = effect.before, effect.after, effect.parent_loss
        rows = (
            (*_row(LOSS, before.loss, after.loss), share_closed(before.loss - parent, after.loss - parent)),
            (*_row(KL, before.kl, after.kl), share_closed(before.kl, after.kl)),
        )
        closed = Figure("gap closed", style="share", better="higher")
        columns = (*map(Figure, ("held out", "pruned", "repaired")), closed)
        left_out = f" (left out: {', '.join(found.left_out)})" if found.left_out else ""
        kept = "" if found.is_kept else ": the plain child was written"
        yield Table(f"Repair: {', '.join(found.repairs) or 'none'}{left_out}{kept}", columns, rows)


def _row(figure: Figure, before: float | None, after: float | None) -> tuple[Cell, ...]:
    written = replace(figure, style="fixed")
    return figure.heading, Estimate(before, figure=written), Estimate(after, figure=written)


def training_table(label: str, found: TrainingResult) -> Table:
    """Held-out loss and KL before and after a training."""
    best = f", weights of step {found.weights_of_step:,}" if found.weights_of_step != found.steps else ""
    rows = [
        _row(figure, getattr(found.before, name, None), after)
        for name, figure in HELD_OUT.items()
        if (after := getattr(found.after, name, None)) is not None
    ]
    worse = f" (worse: {found.worse})" if found.worse else ""
    zeros = f", {found.mask}" if found.mask else ""
    signals = f" of {found.signals}" if found.signals else ""
    title = f"{label}: {found.steps:,} steps, {found.tokens:,} tokens{signals}{best}{zeros}{worse}"
    return Table.of_words(title, ("held out", "before", "after"), rows)
