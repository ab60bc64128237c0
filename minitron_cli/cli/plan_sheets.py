"""What a dry run has to tell: as plain values, and as tables of text."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from minitron_cli.cli.tables import serving_sheet
from minitron_cli.cli.text_table import Sheet, share

if TYPE_CHECKING:
    from minitron_cli.dry_run import Plan
    from minitron_cli.model.shape import Shape


def task_sheet(tasks: Sequence[Mapping[str, Any]]) -> Sheet:
    """What tasks a dry run would ask."""
    columns = ("task", "shots", "items", "metrics", "data", "note")
    return Sheet("tasks", ["", *columns[1:-1], ""], [[str(row[name]) for name in columns] for row in tasks])


def plan_values(plan: "Plan") -> dict[str, Any]:
    remarks = _remarks(plan)
    return {
        "model": plan.model,
        "parent": _shape_values(plan.parent),
        "children": {name: _shape_values(shape) | {"serving": remarks[name]} for name, shape in plan.children.items()},
        "steps": dict(plan.steps),
    }


def _remarks(plan: "Plan") -> dict[str, list[dict[str, Any]]]:
    """What is not ok about serving each child."""
    from minitron_cli.model.serving import remarks

    return {
        name: [row._asdict() for row in remarks(shape, parent=plan.parent)] for name, shape in plan.children.items()
    }


def _shape_values(shape: "Shape") -> dict[str, Any]:
    return {
        "sizes": dict(shape.sizes),
        "parameters": shape.parameters(),
        "non_embedding": shape.parameters("non_embedding"),
        "kv_cache_bytes_per_token": shape.kv_cache_bytes(1, 1),
        "flops_per_token": shape.flops_per_token(),
    }


def plan_sheets(plan: "Plan") -> list[Sheet]:
    shapes = {"parent": plan.parent} | dict(plan.children)
    parent = plan.parent.parameters()
    rows = [
        [
            name,
            *(f"{size:,}" for size in shape.prunable.values()),
            f"{shape.parameters():,}",
            share(shape.parameters(), parent),
            f"{shape.parameters('non_embedding'):,}",
        ]
        for name, shape in shapes.items()
    ]
    columns = ["", *plan.parent.prunable, "parameters", "kept", "without embeddings"]
    steps = [[name, what] for name, what in plan.steps.items()]
    sheets = [Sheet(plan.model, columns, rows), Sheet("steps", ["", "what is done"], steps)]
    serving = [[name, *row] for name, some in _remarks(plan).items() for row in serving_sheet(some).rows]
    if serving:
        sheets.append(Sheet("to serve it", ["", *serving_sheet([]).columns], serving))
    return sheets
