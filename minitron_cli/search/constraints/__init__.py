"""What a child must not cost, one file each. The union is the registry: a new kind is a file and a name here."""

from typing import Annotated

from pydantic import Field

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
