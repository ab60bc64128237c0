"""Results of artifacts, as plain values for programs and as tables for people. Prints nothing."""

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from minitron_cli.artifacts.artifact import Artifact
from minitron_cli.cost import compute
from minitron_cli.cost.derive import spent
from minitron_cli.cost.lineage import device_hours
from minitron_cli.figures import Figure
from minitron_cli.report import (
    beside,
    candidates,
    evaluation,
    family,
    importance,
    landscape,
    provenance,
    sections,
    shapes,
    signals,
    sparsity,
    ticket,
)
from minitron_cli.report import price as prices
from minitron_cli.report.view import Cell, Table
from minitron_cli.results.evaluation import EvaluationResult
from minitron_cli.results.family import FamilyResult
from minitron_cli.results.importance import ImportanceResult
from minitron_cli.results.landscape import LandscapeResult
from minitron_cli.results.of_stage import RESULTS
from minitron_cli.results.prune import PruneResult
from minitron_cli.results.search import SearchResult
from minitron_cli.results.sparsify import SparsifyResult
from minitron_cli.results.teach import TeachResult
from minitron_cli.results.ticket import RoundResult, SupermaskResult, TicketResult
from minitron_cli.results.training import TrainingResult

if TYPE_CHECKING:
    from collections.abc import Mapping

    from minitron_cli.dry_run import Plan
    from minitron_cli.evaluate.gate import Outcome
    from minitron_cli.model.shape import Shape
    from minitron_cli.results.price import Price
    from minitron_cli.scores.scores import Scores

SCORED = ("head", "ffn", "hidden")
DEFAULT_WAY = "l2 of mean"


def values(artifact: Artifact) -> dict[str, Any]:
    """Artifact as JSON values: its identity, its result and the record of its run."""
    return {
        "stage": artifact.stage,
        "label": artifact.label,
        "path": str(artifact.path),
        "key": artifact.key,
        "result": artifact.result(RESULTS[artifact.stage]).as_json(),
        "run": artifact.run.model_dump(mode="json", exclude_none=True) if artifact.run else None,
        **({"layers": _layers(artifact)} if artifact.stage == "importance" else {}),
        **({"others": others} if (others := _others(artifact)) else {}),
    }


def _others(artifact: Artifact) -> dict[str, Any]:
    """Models measured elsewhere that stand beside those of an evaluation, by name."""
    found = beside.elsewhere(artifact) if artifact.stage == "evaluate" else []
    return {model.label: model.found.model_dump(mode="json") for model in found}


def _layers(artifact: Artifact) -> dict[str, list[float | None]]:
    layers = importance.layer_scores(_scores(artifact))
    return {name: [x if math.isfinite(x) else None for x in column] for name, column in layers.items()}


def _scores(artifact: Artifact) -> "Scores":
    from minitron_cli.scores.scores import Scores

    return Scores.load(artifact.path)


def tables(artifact: Artifact) -> Iterator[Table]:
    """Artifact as tables."""
    match artifact.result(RESULTS[artifact.stage]):
        case ImportanceResult():
            yield importance.layer_table(importance.layer_scores(_scores(artifact)))
        case SearchResult():
            yield from candidates.candidate_tables(candidates.Ranking.of(artifact))
        case PruneResult() as result:
            yield from _prune(artifact, result)
        case SparsifyResult() as result:
            yield from sparsity.tables(result)
        case TeachResult() as result:
            yield signals.signals_table(result)
        case TrainingResult() as result:
            yield sections.training_table(artifact.label, result)
        case FamilyResult() as result:
            yield from family.tables(result)
        case LandscapeResult() as result:
            yield from landscape.tables(result)
        case TicketResult() as result:
            yield from ticket.tables(result)
        case SupermaskResult() as result:
            yield ticket.supermask_table(result)
        case RoundResult() as result:
            yield sections.training_table(artifact.label, result.training)
        case EvaluationResult() as result:
            yield from evaluation.evaluation_tables(beside.models(artifact))
            if (others := beside.not_measured(artifact)).rows:
                yield others
            if artifact.run and (speed := artifact.run.speed):
                yield evaluation.speed_table(speed)


def _prune(artifact: Artifact, result: PruneResult) -> Iterator[Table]:
    if result.candidates:
        yield from candidates.candidate_tables(candidates.Ranking.of(artifact))
    yield shapes.shape_table("Pruned", {"parent": result.parent, "child": result.child})
    yield from sections.repair_tables(result.repair)
    if artifact.run and (check := artifact.run.export_check):
        row = f"{check.compared}, in {check.seconds:.1f} s", ", ".join(result.checks)
        yield Table.of_words("Export check", ("compared", "passed"), [row])
    if remarks := [finding for finding in result.serving if finding.level != "ok"]:
        yield shapes.serving_table(remarks)


def ranked(artifact: Artifact) -> tuple[dict[str, Any], list[Table]]:
    """Range of the scores of each axis, and rank correlation of the aggregations, of an importance artifact."""
    from minitron_cli.scores.rank_correlation import agreement

    scores = _scores(artifact)
    found = {axis: scores.activation(axis) for axis in (*SCORED, *["expert"] * scores.has_experts)}
    axes = {
        axis: {"least": float(score.min()), "median": float(score.median()), "most": float(score.max())}
        for axis, score in found.items()
    }
    correlations = {axis: agreement(scores, axis) for axis in SCORED}
    spread: list[tuple[Cell, ...]] = [(axis, *values.values()) for axis, values in axes.items()]
    by_axis = ((Figure(axis, style="fixed"), list(some[DEFAULT_WAY].values())) for axis, some in correlations.items())
    return {"axes": axes, "agreement": correlations}, [
        Table.of_words(f"Importance of a channel, {DEFAULT_WAY}", ("axis", "least", "median", "most"), spread),
        Table.of_columns(
            f"Rank correlation with {DEFAULT_WAY} (Spearman)",
            (Figure("samples, of tokens"), list(correlations["ffn"])),
            *by_axis,
        ),
    ]


def judged(gates: "Sequence[Outcome]") -> tuple[dict[str, Any], list[Table]]:
    """Outcome of every gate."""
    return {"gates": [outcome.json() for outcome in gates]}, [evaluation.gate_table(gates)]


def costs(made: Sequence[Artifact], steps: "Mapping[str, str]") -> tuple[dict[str, Any], list[Table]]:
    """Cost of the last artifact, given with all that it was made from. `steps`: key -> label of the step of a chain."""
    entries = {f"{one.stage}-{one.key[:8]}": spent(one) for one in made}
    hours, expected = device_hours(made), _expected(made)
    values = {
        "of": made[-1].stage,
        "ledger": {name: [entry._asdict() for entry in some] for name, some in entries.items()},
        **(
            {"steps": {f"{one.stage}-{one.key[:8]}": steps[one.key] for one in made if one.key in steps}}
            if steps
            else {}
        ),
        "total": [compute.total(entry for some in entries.values() for entry in some)._asdict()],
        "device_hours": hours,
        "expected": {name: {"expected_seconds": a, "seconds": b} for name, (a, b) in expected.items()},
    }
    rows = [row for one in made for row in provenance.cost_rows(one, steps.get(one.key, ""))]
    cost = provenance.cost_table(f"Cost of the {made[-1].stage} result and all that it was made from", rows)
    time = Table.of_words("Time", ("device", "hours"), hours.items())
    return values, [cost, *([time] if hours else []), *([prices.expected(expected)] if expected else [])]


def _expected(made: Sequence[Artifact]) -> dict[str, tuple[float, float]]:
    """Artifact -> the seconds that its work was expected to take, and those that it took, where both are known."""
    found = {}
    for one in made:
        if (run := one.run) and run.price and (seconds := run.price.seconds) is not None:
            found[f"{one.stage}-{one.key[:8]}"] = seconds, run.seconds_in_all
    return found


def price_values(price: "Price") -> dict[str, Any]:
    """Price of a stage with its totals."""
    totals = ("tokens", "flops", "seconds", "memory_bytes", "disk_bytes")
    return price.model_dump(mode="json") | {name: getattr(price, name) for name in totals}


def planned(plan: "Plan") -> tuple[dict[str, Any], list[Table]]:
    """Shapes and steps of a recipe."""
    from minitron_cli.model.serving import remarks

    models = {"parent": plan.parent, **plan.children}
    serving = {name: remarks(shape, parent=plan.parent) for name, shape in plan.children.items()}
    shown = {name: _shape_values(shape) for name, shape in models.items()}
    children = {name: shown[name] | {"serving": [row._asdict() for row in rows]} for name, rows in serving.items()}
    tables = [
        shapes.shape_table(plan.model, {name: compute.model_size(shape, 0) for name, shape in models.items()}),
        Table.of_words("Steps", ("stage", "work"), plan.steps.items()),
        *(shapes.serving_table(rows, f"Serving {name}") for name, rows in serving.items() if rows),
    ]
    return {"model": plan.model, "parent": shown["parent"], "children": children, "steps": dict(plan.steps)}, tables


def _shape_values(shape: "Shape") -> dict[str, Any]:
    return {
        "sizes": dict(shape.sizes),
        "parameters": shape.parameters(),
        "non_embedding": shape.parameters("non_embedding"),
        "kv_cache_bytes_per_token": shape.kv_cache_bytes(1, 1),
        "flops_per_token": shape.flops_per_token(),
    }


def file_table(title: str, sizes: "Mapping[str, int]") -> Table:
    """Files with their sizes, and the total."""
    rows = (*sorted(sizes.items()), (f"{len(sizes)} files", sum(sizes.values())))
    return Table(title, (Figure("file"), Figure("bytes", style="count")), rows)
