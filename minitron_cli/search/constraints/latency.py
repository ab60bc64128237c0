"""How long a child takes here, measured."""

from typing import TYPE_CHECKING, ClassVar, Literal

from minitron_cli.search.constraints.base import Between, Clock, Cost, Workload
from minitron_cli.spec import Reading

if TYPE_CHECKING:
    from minitron_cli.model.shape import Shape


class Latency(Between, Workload):
    """Milliseconds of one turn: of the prompt's forward pass, or of one more token."""

    is_measured: ClassVar[bool] = True

    kind: Literal["latency"] = "latency"
    at_least: Reading | None = None
    """No faster than this; of use to leave out what is too small."""
    at_most: Reading | None = None
    """Milliseconds, or a share of the parent's, timed in turn with it."""

    def measure(self, shape: "Shape", parent: "Shape", clock: Clock) -> Cost:
        timing = clock(shape, Workload(**self.model_dump(include=set(Workload.model_fields))))
        return Cost(1000 * timing.seconds, 1000 * timing.parent_seconds)

    @property
    def title(self) -> str:
        return f"latency of {self.phase} at {self.batch} x {self.length:,} tokens"

    def spelled(self, value: float) -> str:
        return f"{value:,.3g} ms"
