"""Tables of shapes: a model's sizes beside its parent's, and how well programs serve them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from minitron_cli.figures import Estimate, Figure
from minitron_cli.report.text import axis_title, sizes_text
from minitron_cli.report.view import Cell, Plot, Section, Table
from minitron_cli.results.base import ModelSize
from minitron_cli.results.prune import PruneResult, ServingFinding

if TYPE_CHECKING:
    from minitron_cli.model.serving import Finding

PARAMETERS = Figure("parameters", style="count", better="lower")
NON_EMBEDDING = Figure("parameters without embeddings", style="count", better="lower")
CACHE = Figure("KV cache per token", style="bytes", better="lower")
KEPT = Figure("kept", style="share")


def shape_table(title: str, models: Mapping[str, ModelSize], cache_bytes: Sequence[int] = ()) -> Table:
    """Quantities down, models across, with the share of the first model's that each other model keeps.

    `cache_bytes`: KV cache of one token of each model, if it is to be shown.
    """
    sizes = list(models.values())
    axes = dict.fromkeys(axis for one in sizes for axis in one.sizes)
    rows = [
        *(_row(Figure(axis_title(axis), style="count"), [one.sizes.get(axis) for one in sizes]) for axis in axes),
        _row(PARAMETERS, [one.parameters for one in sizes]),
        _row(NON_EMBEDDING, [one.non_embedding for one in sizes]),
        *([_row(CACHE, cache_bytes)] if cache_bytes else []),
    ]
    others = list(models)[1:]
    kept = [replace(KEPT, title="kept" if len(others) == 1 else f"kept by {name}") for name in others]
    return Table(title, (Figure(""), *map(Figure, models), *kept), rows)


def _row(figure: Figure, values: Sequence[int | None]) -> tuple[Cell, ...]:
    first, *others = values
    shares = [other / first if first and other is not None else None for other in others]
    return (figure.title, *(Estimate(value, figure=figure) for value in values), *shares)


def shape_section(parent: str, found: PruneResult, cache_bytes: Sequence[int], picture: Plot | None = None) -> Section:
    """Section on the sizes of a model, named `parent`, and of its pruned child, with a picture of what was pruned."""
    models = {parent: found.parent, f"{parent}, pruned": found.child}
    text = "Sizes of the model along each axis, before and after pruning."
    plots = (picture,) if picture else ()
    return Section("shape", "What was pruned", text, (shape_table("Shape", models, cache_bytes),), plots)


def serving_table(findings: "Iterable[ServingFinding | Finding]", title: str = "Serving") -> Table:
    """Compatibility of a shape with serving and quantization programs (docs/serving.md)."""
    headings = ("program", "level", "reason", "nearest shape without the problem")
    none = {"slower": "none", "fails": "none"}
    rows = ((x.reader, x.level, x.reason, sizes_text(x.nearest) or none.get(x.level, "")) for x in findings)
    return Table.of_words(title, headings, rows)


def serving_section(found: PruneResult) -> Section:
    """Section on serving and on the export checks that the child passed."""
    text = "Compatibility of the pruned model's shape with programs that serve or quantize it."
    if found.checks:
        passed = ", ".join(found.checks)
        text += f" Before it was kept, it was compared with the parent pruned in memory: {passed}."
    return Section("serving", "Serving", text, (serving_table(found.serving),))
