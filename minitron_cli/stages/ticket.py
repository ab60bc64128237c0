"""Ticket stage: iterative magnitude pruning with rewinding, and its controls, as one table.

Every training is an artifact (`ticket_rounds`): more rounds, seeds or controls reuse all that is there.
"""

from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TypeVar

from minitron_cli import io
from minitron_cli.artifacts.artifact import Artifact
from minitron_cli.artifacts.build import Context, StageBuild, produce
from minitron_cli.data.sources import DataConfig
from minitron_cli.errors import RecipeError
from minitron_cli.inputs.source_model import SourceModel
from minitron_cli.report import plots
from minitron_cli.report import ticket as report
from minitron_cli.report.page import render
from minitron_cli.results.ticket import TicketResult, TicketRow
from minitron_cli.results.training import read_curves
from minitron_cli.spec import Spec
from minitron_cli.stages.ticket_rounds import Pricing, Round, Tickets, collected, fitted, texts
from minitron_cli.ticket.config import TicketConfig
from minitron_cli.ticket.masks import check_none_empty

STAGE, VERSION = "ticket", 3
PLOT, PAGE = "tickets.svg", "tickets.html"
T = TypeVar("T", bound=TicketResult)


def run(context: Context, model: SourceModel, data: DataConfig, config: TicketConfig) -> Artifact:
    """Train tickets and controls at every sparsity with every seed; the artifact is the table of all (TicketResult).

    `model` gives the shape and the tokenizer, and with `config.start` the initial weights.
    """
    train_blocks, held_out = texts(context, model, data)
    config = config.model_copy(update={"training": fitted(config.training, train_blocks)})
    check_none_empty(model.shape, config)
    steps = config.training.total_steps(train_blocks.sequence_length)
    if (config.rewind_step or 0) > steps:
        raise RecipeError(f"ticket.rewind {config.rewind} is after the last of {steps:,} steps: lower it")
    total = config.seeds * (1 + config.rounds * (1 + len(config.controls)))
    pricing = Pricing(context, model, config.training, train_blocks, held_out, total)
    tickets = Tickets(replace(context, is_between=True), model, train_blocks, held_out, config, pricing)
    seeds = range(config.seed, config.seed + config.seeds)
    rounds = collected(chain.from_iterable(map(tickets.rounds, seeds)), pricing)
    result = table(TicketResult, config, config.rewind, steps, rounds, context.workspace.root)
    return written(context, STAGE, config, rounds, result)


def written(context: Context, stage: str, config: Spec, rounds: list[Round], found: TicketResult) -> Artifact:
    """Artifact of a table of trainings, with its plots."""

    def build(work: StageBuild) -> TicketResult:
        io.write_new(work.path / PLOT, plots.sheet(report.plots(found)).encode())
        io.write_new(work.path / PAGE, render(report.view(found)).encode())
        return found

    return produce(
        context,
        stage=stage,
        version=VERSION,
        config=config,
        inputs={one.artifact.label: one.artifact.fingerprint for one in rounds},
        build=build,
    )


def table(kind: type[T], config: TicketConfig, rewind: str, steps: int, rounds: list[Round], root: Path) -> T:
    """Table of trainings in a workspace at `root`, beside the dense one of the same seed."""
    dense = {one.seed: _final_loss(one) for one in rounds if one.result.round == 0}
    rows = tuple(_row(one, dense[one.seed], root) for one in rounds)
    return kind(rewind=rewind, scope=config.scope, steps=steps, seeds=len(dense), rows=rows)


def _final_loss(one: Round) -> float:
    after = one.result.training.after
    assert after, "held-out text was asked for"
    return after.loss


def _row(one: Round, dense_loss: float, root: Path) -> TicketRow:
    _, points = read_curves(one.artifact.path)
    return TicketRow(
        arm=one.result.arm,
        round=one.result.round,
        seed=one.seed,
        density=one.result.kept / one.result.weights,
        loss=_final_loss(one),
        steps_to_dense=next((point.step for point in points if point.loss <= dense_loss), None),
        best_step=min(points, key=lambda point: point.loss).step,
        moved_kept=one.result.moved_kept,
        moved_lost=one.result.moved_lost,
        path=str(one.artifact.path.relative_to(root)),
    )
