"""What every constraint is: a cost of a shape, and the limits it has to keep."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Literal, NamedTuple

from pydantic import Field, model_validator

from minitron_cli.spec import Spec, of_whole

if TYPE_CHECKING:
    from minitron_cli.model.shape import Shape


class Workload(Spec):
    """What a model is timed at."""

    phase: Literal["prefill", "decode"] = "decode"
    """prefill: a forward pass over the prompt; decode: one more token for each sequence."""
    batch: int = Field(1, ge=1)
    """Sequences at a time."""
    length: int = Field(512, ge=1)
    """Tokens of each sequence: the prompt's, or those in the cache."""
    repeats: int = Field(7, ge=1)
    """Times that candidate and parent take turns; the median counts."""

    @property
    def tokens(self) -> int:
        """Tokens that come out of one turn."""
        return self.batch * (self.length if self.phase == "prefill" else 1)


class Timing(NamedTuple):
    """One turn's seconds, of a candidate and of the parent timed in between."""

    seconds: float
    parent_seconds: float


Clock = Callable[["Shape", Workload], Timing]
"""Times a shape on this device; only a stage can."""


class Cost(NamedTuple):
    """What a shape costs, and what the parent costs by the same measure."""

    value: float
    whole: float


class Limits(NamedTuple):
    """The costs that are admitted, both ends included."""

    low: float
    high: float

    def admit(self, value: float) -> bool:
        return self.low <= value <= self.high

    def miss(self, value: float) -> float:
        """How far a value is outside, as a fraction of the limit it misses; signed, and 0 inside."""
        if value > self.high:
            return value / self.high - 1 if self.high else value
        return value / self.low - 1 if value < self.low else 0.0


class Bounded(Spec, ABC):
    """The base of a constraint: a kind, and what it depends on."""

    @abstractmethod
    def limits(self, whole: float) -> Limits:
        """Where the parent costs `whole`."""

    @property
    @abstractmethod
    def title(self) -> str:
        """What is counted, as a column's title."""

    def format(self, value: float) -> str:
        """A cost for people."""
        return f"{value:,.4g}"

    @abstractmethod
    def says(self, whole: float) -> str:
        """The demand for people: `at most 16.0 GiB of memory`."""


class Counted(Bounded):
    """A constraint whose cost follows from the shape."""

    @abstractmethod
    def cost(self, shape: "Shape") -> float:
        """Of a shape, with no model built."""


class Timed(Bounded, Workload):
    """A constraint whose cost a model has to be run for."""

    def measure(self, shape: "Shape", parent: "Shape", clock: Clock) -> Cost:
        """The cost of a shape, timed in turn with its parent."""
        timing = clock(shape, Workload(**self.model_dump(include=set(Workload.model_fields))))
        return Cost(self.of_turn(timing.seconds), self.of_turn(timing.parent_seconds))

    @abstractmethod
    def of_turn(self, seconds: float) -> float:
        """The cost, if a turn takes so long."""


class Between(Bounded):
    """A constraint whose limits the user gives."""

    at_least: float | str | None = None
    """The least cost that is admitted."""
    at_most: float | str | None = None
    """The largest cost that is admitted."""

    @model_validator(mode="after")
    def _is_bounded(self) -> "Between":
        if self.at_least is None and self.at_most is None and not self._has_other_limits():
            raise ValueError("nothing is asked for; give at_least or at_most")
        return self

    def _has_other_limits(self) -> bool:
        return False

    def limits(self, whole: float) -> Limits:
        low = -math.inf if self.at_least is None else of_whole(self.at_least, whole)
        return Limits(low, math.inf if self.at_most is None else of_whole(self.at_most, whole))

    def says(self, whole: float) -> str:
        return " and ".join(self._demands(self.limits(whole))) + f" {self.title}"

    def _demands(self, limits: Limits) -> Iterator[str]:
        for word, bound, limit in (("least", self.at_least, limits.low), ("most", self.at_most, limits.high)):
            if isinstance(bound, str):
                yield f"at {word} {bound} of the parent's"
            elif bound is not None:
                yield f"at {word} {self.format(limit)}"
