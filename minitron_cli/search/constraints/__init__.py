"""Constraints of a search, one file each. The union is the registry: a new kind is a file and a name here."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, get_args

from pydantic import Field

from minitron_cli.figures import Figure
from minitron_cli.search.constraints.base import Bounded
from minitron_cli.search.constraints.flops import Flops
from minitron_cli.search.constraints.latency import Latency
from minitron_cli.search.constraints.memory import Memory
from minitron_cli.search.constraints.parameters import Parameters
from minitron_cli.search.constraints.serving import Serving
from minitron_cli.search.constraints.throughput import Throughput

Constraint = Annotated[
    Parameters | Memory | Flops | Latency | Throughput | Serving,
    Field(discriminator="kind"),
]
KINDS: dict[str, type[Bounded]] = {
    kind.model_fields["kind"].default: kind for kind in get_args(get_args(Constraint)[0])
}
SEPARATOR = ": "
"""Between the kind of a constraint and the quantity, in the name of its cost."""


def cost_names(constraints: Sequence[Constraint]) -> list[str]:
    """Names of the constraints' costs: the kind, and the quantity where another one of that kind has another.

    For example, `memory`; or, of two kinds of latency, `latency: latency of decode at 8 x 512 tokens`.
    """
    quantities = defaultdict(set)
    for constraint in constraints:
        quantities[constraint.kind].add(constraint.quantity)
    return [
        f"{one.kind}{SEPARATOR}{one.quantity}" if len(quantities[one.kind]) > 1 else one.kind for one in constraints
    ]


def figure_of(cost: str) -> Figure:
    """Figure of a cost, by its name.

    A kind of constraint that this installation lacks, of an artifact that another one made, goes by its name.
    """
    kind, _, quantity = cost.partition(SEPARATOR)
    figure = KINDS[kind].figure if kind in KINDS else Figure(kind.replace("_", " "))
    return replace(figure, title=quantity) if quantity else figure
