"""Base of every constraint: a cost of a shape, the figure that presents it, and the limits that it must keep."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

from pydantic import Field, model_validator

from minitron_cli.figures import Figure
from minitron_cli.spec import Spec, of_whole

if TYPE_CHECKING:
    from minitron_cli.model.shape import Shape


class Workload(Spec):
    """Input size at which a model is timed."""

    phase: Literal["prefill", "decode"] = "decode"
    """prefill: one forward pass over the prompt; decode: one more token for each sequence."""
    batch: int = Field(1, ge=1)
    """Sequences per batch."""
    length: int = Field(512, ge=1)
    """Tokens of each sequence: prompt tokens for prefill, cached tokens for decode."""
    repeats: int = Field(7, ge=1)
    """Rounds in which candidate and parent are timed in alternation; the median is used."""

    @property
    def tokens(self) -> int:
        """Tokens that one round processes."""
        return self.batch * (self.length if self.phase == "prefill" else 1)


class Timing(NamedTuple):
    """Seconds of one round, of a candidate and of the parent timed in alternation with it."""

    seconds: float
    parent_seconds: float


Clock = Callable[["Shape", Workload], Timing]
"""Times a shape on this device under a workload."""


class Cost(NamedTuple):
    """Cost of a shape, and cost of the parent by the same measure."""

    value: float
    whole: float


class Limits(NamedTuple):
    """Admitted range of a cost, both ends included."""

    low: float
    high: float

    def admit(self, value: float) -> bool:
        return self.low <= value <= self.high

    def miss(self, value: float) -> float:
        """Signed distance of a value from the range, as a fraction of the violated limit; 0 inside."""
        if value > self.high:
            return value / self.high - 1 if self.high else value
        return value / self.low - 1 if value < self.low else 0.0


class Bounded(Spec, ABC):
    """Base of every constraint: the figure of its cost, and limits on it."""

    figure: ClassVar[Figure]
    """Title, unit, style and direction of the cost, wherever it is shown."""
    is_compared: ClassVar[bool] = True
    """Whether candidates are compared by this cost; False if every admitted shape has the same."""

    @abstractmethod
    def limits(self, whole: float) -> Limits:
        """Admitted costs, if the parent costs `whole`."""

    @property
    def quantity(self) -> str:
        """Name of the cost with the settings that it depends on: `latency of decode at 1 x 512 tokens`."""
        return self.figure.title

    @abstractmethod
    def demand(self, whole: float) -> str:
        """Requirement in words, if the parent costs `whole`: `at most 16 GiB memory at 1 x 8,192 tokens`."""


class Counted(Bounded):
    """Constraint whose cost follows from the shape alone."""

    @abstractmethod
    def cost(self, shape: "Shape") -> float:
        """Cost of a shape; no model is built."""


class Timed(Bounded, Workload):
    """Constraint whose cost is measured by running a model."""

    def measure(self, shape: "Shape", parent: "Shape", clock: Clock) -> Cost:
        """Costs of a shape and of its parent, timed in alternation."""
        timing = clock(shape, Workload(**self.model_dump(include=set(Workload.model_fields))))
        return Cost(self.of_round(timing.seconds), self.of_round(timing.parent_seconds))

    @abstractmethod
    def of_round(self, seconds: float) -> float:
        """Cost of a model that takes `seconds` for one round."""


class Between(Bounded):
    """Constraint whose limits are given by the user."""

    at_least: float | str | None = None
    """Smallest admitted cost."""
    at_most: float | str | None = None
    """Largest admitted cost."""

    @model_validator(mode="after")
    def _is_bounded(self) -> "Between":
        if self.at_least is None and self.at_most is None and not self._has_other_limits():
            raise ValueError("the constraint has no limit; give at_least or at_most")
        return self

    def _has_other_limits(self) -> bool:
        return False

    def limits(self, whole: float) -> Limits:
        low = -math.inf if self.at_least is None else of_whole(self.at_least, whole)
        return Limits(low, math.inf if self.at_most is None else of_whole(self.at_most, whole))

    def demand(self, whole: float) -> str:
        return " and ".join(self._bounds(self.limits(whole))) + f" {self.quantity}"

    def _bounds(self, limits: Limits) -> Iterator[str]:
        for word, bound, limit in (("least", self.at_least, limits.low), ("most", self.at_most, limits.high)):
            if isinstance(bound, str):
                yield f"at {word} {bound} of the parent's"
            elif bound is not None:
                yield f"at {word} {self.figure.text(limit)}"
