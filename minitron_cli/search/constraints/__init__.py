"""Constraints of a search, one file each. The union is the registry: a new kind is a file and a name here."""

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


def figure_of(kind: str) -> Figure:
    """Figure of the cost of a kind of constraint.

    A kind that this installation lacks, of an artifact that another one made, goes by its name.
    """
    return KINDS[kind].figure if kind in KINDS else Figure(kind.replace("_", " "))
