"""The matrices of decoder blocks, grouped by the input that they read. Follows from a family's table.

Tables spell a matrix as `nn.Linear` stores it: outputs, then inputs. Matrices of one module that read the same axes,
such as query, key and value, read the same input. Routers, which have an output per expert, or one for an expert that
all tokens use, are not among them.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from minitron_cli.model.family import Family
from minitron_cli.model.layout import Dim, parse
from minitron_cli.model.shape import Shape

INPUTS = 1
"""Axis of a stored matrix that its inputs are on."""


class InputGroup(NamedTuple):
    """Templates of the matrices of a block that read one input, in table order."""

    templates: tuple[str, ...]

    @property
    def module(self) -> str:
        """Template of the module whose input it is; an expert's matrices have no module of their own."""
        return self.templates[0].removesuffix(".weight")

    @property
    def is_of_expert(self) -> bool:
        """Whether every expert has such matrices of its own."""
        return "{expert}" in self.module


def held(shape: Shape, groups: Iterable[InputGroup], layer: int) -> Iterator[InputGroup]:
    """The groups of one layer: without the matrices that it does not hold."""
    for group in groups:
        if templates := tuple(t for t in group.templates if shape.family.holds(layer, t)):
            yield InputGroup(templates)


def input_groups(shape: Shape) -> tuple[InputGroup, ...]:
    """Groups of every matrix of a decoder block whose module is given activations, without routers."""
    found: dict[tuple[str, Dim], list[str]] = {}
    for template in shape.templates:
        layout = parse(shape.family.tensors[template])
        is_matrix = "{layer}" in template and len(layout.dims) == 2 and template not in _left_out(shape.family)
        if is_matrix and layout.axes(0) - {"expert"}:
            module = template.removesuffix(".weight").rpartition(".")[0]
            found.setdefault((module, layout.dims[INPUTS]), []).append(template)
    return tuple(InputGroup(tuple(templates)) for templates in found.values())


def _left_out(family: Family) -> frozenset[str]:
    return family.elementwise | family.uncalled | {*family.transposed}
