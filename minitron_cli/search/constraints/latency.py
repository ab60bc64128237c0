"""Constraint on the measured latency of a child on this machine."""

from typing import ClassVar, Literal

from minitron_cli.figures import Figure
from minitron_cli.search.constraints.base import Between, Timed
from minitron_cli.spec import Reading


class Latency(Between, Timed):
    """Milliseconds of one round: the forward pass over the prompt, or one more token."""

    figure: ClassVar[Figure] = Figure("latency", "ms", better="lower")

    kind: Literal["latency"] = "latency"
    at_least: Reading | None = None
    """Lower limit; excludes shapes that are too small."""
    at_most: Reading | None = None
    """Upper limit in milliseconds, or as a share of the parent's latency, timed in alternation with it."""

    def of_round(self, seconds: float) -> float:
        return 1000 * seconds

    @property
    def quantity(self) -> str:
        return f"{self.figure.title} of {self.phase} at {self.batch} x {self.length:,} tokens"
