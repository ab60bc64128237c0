"""How many tokens a second a child makes here, measured."""

from typing import TYPE_CHECKING, ClassVar, Literal

from minitron_cli.search.constraints.base import Between, Clock, Cost, Workload
from minitron_cli.spec import Reading

if TYPE_CHECKING:
    from minitron_cli.model.shape import Shape


class Throughput(Between, Workload):
    """Tokens per second, read (prefill) or written (decode)."""

    is_measured: ClassVar[bool] = True

    kind: Literal["throughput"] = "throughput"
    at_least: Reading | None = None
    """Tokens per second, or a share of the parent's, such as 150%, timed in turn with it."""
    at_most: Reading | None = None
    """No more than this; of use to leave out what is too small."""

    def measure(self, shape: "Shape", parent: "Shape", clock: Clock) -> Cost:
        timing = clock(shape, Workload(**self.model_dump(include=set(Workload.model_fields))))
        return Cost(self.tokens / timing.seconds, self.tokens / timing.parent_seconds)

    @property
    def title(self) -> str:
        return f"throughput of {self.phase} at {self.batch} x {self.length:,} tokens"

    def spelled(self, value: float) -> str:
        return f"{value:,.4g} tokens/s"
