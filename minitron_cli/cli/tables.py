"""Results of artifacts, as plain values for programs and as tables for people. Prints nothing."""

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from minitron_cli.artifacts.artifact import Artifact
from minitron_cli.cost import compute
from minitron_cli.cost.derive import spent
from minitron_cli.cost.lineage import device_hours
from minitron_cli.figures import Figure
from minitron_cli.report import candidates, evaluation, importance, provenance, sections, shapes
from minitron_cli.report.view import Table
from minitron_cli.results.base import Result
from minitron_cli.results.evaluation import EvaluationResult
from minitron_cli.results.importance import ImportanceResult
from minitron_cli.results.prune import PruneResult
from minitron_cli.results.report import ReportResult
from minitron_cli.results.search import SearchResult
from minitron_cli.results.training import CorrectionResult, TeacherResult, TrainingResult

if TYPE_CHECKING:
    from collections.abc import Mapping

    from minitron_cli.dry_run import Plan
    from minitron_cli.model.shape import Shape
    from minitron_cli.scores.scores import Scores

SCORED = ("head", "ffn", "hidden")
DEFAULT_WAY = "l2 of mean"
RESULTS: dict[str, type[Result]] = {
    "teacher": TeacherResult,
    "importance": ImportanceResult,
    "search": SearchResult,
    "prune": PruneResult,
    "correct": CorrectionResult,
    "distill": TrainingResult,
    "evaluate": EvaluationResult,
    "report": ReportResult,
}
"""Stage -> type of its result."""


def values(artifact: Artifact) -> dict[str, Any]:
    """Artifact as JSON values: its identity, its result and the record of its run."""
    return {
        "stage": artifact.stage,
        "label": artifact.label,
        "path": str(artifact.path),
        "key": artifact.key,
        "result": artifact.result(RESULTS[artifact.stage]).as_json(),
        "run": artifact.run.model_dump(mode="json", exclude_none=True) if artifact.run else None,
        **({"layers": _layers(_scores(artifact))} if artifact.stage == "importance" else {}),
    }


def _scores(artifact: Artifact) -> "Scores":
    from minitron_cli.scores.scores import Scores

    return Scores.load(artifact.path)


def _layers(scores: "Scores") -> dict[str, list[float | None]]:
    layers = importance.layer_scores(scores)
    return {name: [x if math.isfinite(x) else None for x in column] for name, column in layers.items()}


def tables(artifact: Artifact) -> list[Table]:
    """Artifact as tables."""
    match artifact.result(RESULTS[artifact.stage]):
        case ImportanceResult():
            return [importance.layer_table(importance.layer_scores(_scores(artifact)))]
        case SearchResult():
            return candidates.candidate_tables(candidates.Ranking.of(artifact))
        case PruneResult() as result:
            return list(_prune(artifact, result))
        case TrainingResult() as result:
            return [sections.training_table(artifact.label, result)]
        case EvaluationResult() as result:
            speed = artifact.run.speed if artifact.run else None
            tables = evaluation.evaluation_tables(evaluation.evaluated(result))
            return [*tables, *([evaluation.speed_table(speed)] if speed else [])]
    return []


def _prune(artifact: Artifact, result: PruneResult) -> Iterator[Table]:
    if result.candidates:
        yield from candidates.candidate_tables(candidates.Ranking.of(artifact))
    yield shapes.shape_table("Pruned", {"parent": result.parent, "child": result.child})
    if repaired := sections.repair_table(result.repair):
        yield repaired
    if artifact.run and (check := artifact.run.export_check):
        row = (f"{check.compared}, in {check.seconds:.1f} s", ", ".join(result.checks))
        yield Table("Export check", (Figure("compared"), Figure("passed")), (row,))
    if remarks := [finding for finding in result.serving if finding.level != "ok"]:
        yield shapes.serving_table(remarks)


def ranked(artifact: Artifact) -> dict[str, Any]:
    """Range of the scores of each axis, and rank correlation of the aggregations, of an importance artifact."""
    from minitron_cli.scores.rank_correlation import agreement

    scores = _scores(artifact)
    found = {axis: scores.activation(axis) for axis in (*SCORED, *["expert"] * scores.has_experts)}
    return {
        "axes": {
            axis: {"least": float(score.min()), "median": float(score.median()), "most": float(score.max())}
            for axis, score in found.items()
        },
        "agreement": {axis: agreement(scores, axis) for axis in SCORED},
    }


def ranked_tables(found: "Mapping[str, Any]") -> list[Table]:
    """The same as tables."""
    spread = tuple((axis, *values.values()) for axis, values in found["axes"].items())
    ways = found["agreement"][SCORED[0]]
    agree = tuple((way, *(found["agreement"][axis][DEFAULT_WAY][way] for axis in SCORED)) for way in ways)
    columns = (Figure(axis, style="fixed") for axis in SCORED)
    return [
        Table(
            f"Importance of a channel, {DEFAULT_WAY}", tuple(map(Figure, ("axis", "least", "median", "most"))), spread
        ),
        Table(f"Rank correlation with {DEFAULT_WAY} (Spearman)", (Figure("samples, of tokens"), *columns), agree),
    ]


def costs(made: Sequence[Artifact]) -> dict[str, Any]:
    """Cost of the last artifact, given with all that it was made from."""
    entries = {f"{one.stage}-{one.key[:8]}": spent(one) for one in made}
    total = compute.total(entry for some in entries.values() for entry in some)
    return {
        "of": made[-1].stage,
        "ledger": {name: [entry._asdict() for entry in some] for name, some in entries.items()},
        "total": [total._asdict()],
        "device_hours": device_hours(made),
    }


def cost_tables(made: Sequence[Artifact]) -> list[Table]:
    """The same as tables."""
    rows = [row for one in made for row in provenance.cost_rows(one)]
    hours = tuple(device_hours(made).items())
    return [
        provenance.cost_table(f"Cost of the {made[-1].stage} result and all that it was made from", rows),
        *([Table("Time", (Figure("device"), Figure("hours")), hours)] if hours else []),
    ]


def plan_values(plan: "Plan") -> dict[str, Any]:
    """Plan of a recipe as JSON values."""
    from minitron_cli.model.serving import remarks

    children = {
        name: _shape_values(shape) | {"serving": [row._asdict() for row in remarks(shape, parent=plan.parent)]}
        for name, shape in plan.children.items()
    }
    parent = _shape_values(plan.parent)
    return {"model": plan.model, "parent": parent, "children": children, "steps": dict(plan.steps)}


def _shape_values(shape: "Shape") -> dict[str, Any]:
    return {
        "sizes": dict(shape.sizes),
        "parameters": shape.parameters(),
        "non_embedding": shape.parameters("non_embedding"),
        "kv_cache_bytes_per_token": shape.kv_cache_bytes(1, 1),
        "flops_per_token": shape.flops_per_token(),
    }


def plan_tables(plan: "Plan") -> Iterator[Table]:
    """The same as tables."""
    from minitron_cli.model.serving import remarks

    models = {"parent": plan.parent, **plan.children}
    yield shapes.shape_table(plan.model, {name: compute.model_size(shape, 0) for name, shape in models.items()})
    yield Table("Steps", (Figure("stage"), Figure("work")), tuple(plan.steps.items()))
    for name, shape in plan.children.items():
        if found := remarks(shape, parent=plan.parent):
            yield shapes.serving_table(found, f"Serving {name}")


def file_table(title: str, sizes: "Mapping[str, int]") -> Table:
    """Files with their sizes, and the total."""
    rows = (*sorted(sizes.items()), (f"{len(sizes)} files", sum(sizes.values())))
    return Table(title, (Figure("file"), Figure("bytes", style="count")), rows)
