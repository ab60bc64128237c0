"""The table that a checkpoint would need, tensor by tensor, beside the family whose table fits best."""

import itertools
from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

from minitron_cli.model.family import Family
from minitron_cli.model.nearest_family import Shapes
from minitron_cli.stacked_names import entry

State = Literal["same", "other shape", "not in the table", "not in the checkpoint"]

PRODUCTS = (("head", "head_dim"), ("kv_head", "head_dim"))
"""Axes that a dim may be a product of."""


class NeededRow(NamedTuple):
    """One line of a table: a template, and how it fits."""

    template: str
    layout: str
    """The nearest table's; for other tensors every layout that the sizes allow, with " or " between them."""
    shape: tuple[int, ...]
    """Shape in the checkpoint; of what it lacks, the shape that the nearest table expects."""
    tensors: int
    """Number of tensors of the template."""
    state: State


def needed_rows(family: Family, sizes: Mapping[str, int], tensors: Shapes, expected: Shapes) -> tuple[NeededRow, ...]:
    """Rows of the table for a checkpoint's `tensors`, in their order, then what only `family` has.

    `expected` are the shapes on disk of a model of the family with these axis sizes.
    """
    found, wanted = _by_template(tensors), _by_template(expected)
    layouts = {entry_template(template): layout for template, layout in family.tensors.items()}
    rows = [_row(template, shapes, wanted.get(template), layouts, sizes) for template, shapes in found.items()]
    missing = [
        NeededRow(template, layouts[template], shapes[0], len(shapes), "not in the checkpoint")
        for template, shapes in wanted.items()
        if template not in found
    ]
    return (*rows, *missing)


def entry_template(template: str) -> str:
    """Template of a tensor on disk, which may stack the entries of one in the table."""
    return template.removesuffix("[{expert}]")


def _by_template(tensors: Shapes) -> dict[str, list[tuple[int, ...]]]:
    found: dict[str, list[tuple[int, ...]]] = {}
    for name, shape in tensors.items():
        found.setdefault(_template(name), []).append(shape)
    return found


def _template(name: str) -> str:
    """Name with the first number as the layer's and the second as the expert's."""
    axes = itertools.chain(("{layer}", "{expert}"), itertools.repeat("{}"))
    return ".".join(next(axes) if part.isdigit() else part for part in entry(name).stored.split("."))


def _row(
    template: str,
    shapes: list[tuple[int, ...]],
    wanted: list[tuple[int, ...]] | None,
    layouts: Mapping[str, str],
    sizes: Mapping[str, int],
) -> NeededRow:
    if wanted and set(shapes) == set(wanted):
        return NeededRow(template, layouts[template], shapes[0], len(shapes), "same")
    odd = next((shape for shape in shapes if not wanted or shape not in wanted), shapes[0])
    state: State = "other shape" if wanted else "not in the table"
    return NeededRow(template, possible_layout(odd, sizes), odd, len(shapes), state)


def possible_layout(shape: tuple[int, ...], sizes: Mapping[str, int]) -> str:
    """Layouts that give a shape at these axis sizes, dim by dim; a number stays where no axis has that size."""
    return " ".join(" or ".join(_possible_dims(size, sizes)) or str(size) for size in shape)


def _possible_dims(size: int, sizes: Mapping[str, int]) -> Iterator[str]:
    yield from (axis for axis, n in sizes.items() if n == size and axis != "layer")
    known = [axes for axes in PRODUCTS if {*axes} <= sizes.keys()]
    yield from (f"({' '.join(axes)})" for axes in known if sizes[axes[0]] * sizes[axes[1]] == size)
    if "ffn" in sizes and 2 * sizes["ffn"] == size:
        yield "(ffn + ffn)"
    if len(known) == 2 and (sizes["head"] + 2 * sizes["kv_head"]) * sizes["head_dim"] == size:
        yield "(head head_dim + kv_head head_dim + kv_head head_dim)"
