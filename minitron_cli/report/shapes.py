"""Tables of shapes: a model's sizes beside its parent's, and how well programs serve them."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from minitron_cli.figures import Figure
from minitron_cli.report.text import axis_title, sizes_text
from minitron_cli.report.view import Cell, Quantity, Section, Table
from minitron_cli.results.base import ModelSize
from minitron_cli.results.prune import ServingFinding

if TYPE_CHECKING:
    from minitron_cli.model.serving import Finding
    from minitron_cli.model.shape import Shape

PARAMETERS = Figure("parameters", style="count", better="lower")
NON_EMBEDDING = Figure("parameters without embeddings", style="count", better="lower")
CACHE = Figure("KV cache per token", style="bytes", better="lower")
KEPT = Figure("kept", style="share")


class Sizes(NamedTuple):
    """Sizes of one model."""

    axes: Mapping[str, int]
    """Axis -> size."""
    parameters: int
    non_embedding: int | None = None
    cache_bytes: int | None = None
    """KV cache of one token."""

    @classmethod
    def of_result(cls, found: ModelSize) -> "Sizes":
        """Sizes that a result states."""
        return cls(found.sizes, found.parameters, found.non_embedding)

    @classmethod
    def of(cls, shape: "Shape") -> "Sizes":
        """All sizes of a shape."""
        return cls(shape.sizes, shape.parameters(), shape.parameters("non_embedding"), shape.kv_cache_bytes(1, 1))


def shape_table(title: str, models: Mapping[str, Sizes]) -> Table:
    """Quantities down, models across; of a parent and a child, the share that is kept."""
    found = list(models.values())
    axes = dict.fromkeys(axis for sizes in found for axis in sizes.axes)
    rows = [_row(Figure(axis_title(axis), style="count"), [sizes.axes.get(axis) for sizes in found]) for axis in axes]
    rows.append(_row(PARAMETERS, [sizes.parameters for sizes in found]))
    rows.append(_row(NON_EMBEDDING, [sizes.non_embedding for sizes in found]))
    rows.append(_row(CACHE, [sizes.cache_bytes for sizes in found]))
    columns = (Figure(""), *map(Figure, models), *((KEPT,) if len(found) == 2 else ()))
    return Table(title, columns, tuple(row for row in rows if any(cell is not None for cell in row[1:])))


def _row(figure: Figure, values: list[int | None]) -> tuple[Cell, ...]:
    cells = [None if value is None else Quantity(figure, value) for value in values]
    if len(values) != 2:
        return (figure.title, *cells)
    before, after = values
    return (figure.title, *cells, after / before if before and after is not None else None)


def shape_section(models: Mapping[str, Sizes]) -> Section | None:
    """Section on the sizes of the parent and the child; None without a model."""
    if not models:
        return None
    text = "Sizes of the model along each axis, before and after pruning." if len(models) > 1 else "Sizes of the model."
    return Section("shape", "Shape", text, (shape_table("Shape", models),))


def serving_table(findings: "Iterable[ServingFinding | Finding]", title: str = "Serving") -> Table:
    """Compatibility of a shape with serving and quantization programs (docs/serving.md)."""
    columns = ("program", "level", "reason", "nearest shape without the problem")
    rows = tuple((found.reader, found.level, found.reason, _nearest(found)) for found in findings)
    return Table(title, tuple(map(Figure, columns)), rows)


def _nearest(found: "ServingFinding | Finding") -> str:
    has_problem = found.level in ("slower", "fails")
    return sizes_text(found.nearest) if found.nearest or not has_problem else "none"


def serving_section(findings: Iterable[ServingFinding], checks: Iterable[str]) -> Section | None:
    """Section on serving and on the export checks that the child passed; None if both are unknown."""
    table, passed = serving_table(findings), ", ".join(checks)
    if not table.rows and not passed:
        return None
    text = "Compatibility of the pruned model's shape with programs that serve or quantize it."
    if passed:
        text += f" Before it was kept, it was compared with the parent pruned in memory: {passed}."
    return Section("serving", "Serving", text, (table,) if table.rows else ())


def model_table(title: str, models: "Mapping[str, Shape]") -> Table:
    """Models down, axes and parameters across, with the share of the first model's parameters."""
    first, shapes = next(iter(models.values())), list(models.values())
    return Table.of_columns(
        title,
        (Figure(""), list(models)),
        *((Figure(axis_title(axis), style="count"), [s.prunable.get(axis) for s in shapes]) for axis in first.prunable),
        (PARAMETERS, [shape.parameters() for shape in shapes]),
        (KEPT, [shape.parameters() / first.parameters() for shape in shapes]),
        (NON_EMBEDDING, [shape.parameters("non_embedding") for shape in shapes]),
    )
