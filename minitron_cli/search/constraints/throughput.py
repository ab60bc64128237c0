"""Constraint on the measured throughput of a child on this machine."""

from typing import ClassVar, Literal

from minitron_cli.figures import Figure
from minitron_cli.search.constraints.base import Between, Timed
from minitron_cli.spec import Reading


class Throughput(Between, Timed):
    """Tokens per second, read (prefill) or generated (decode)."""

    figure: ClassVar[Figure] = Figure("throughput", "tokens/s", better="higher")

    kind: Literal["throughput"] = "throughput"
    at_least: Reading | None = None
    """Lower limit in tokens per second, or as a share of the parent's such as 150%, timed in alternation with it."""
    at_most: Reading | None = None
    """Upper limit; excludes shapes that are too small."""

    def of_round(self, seconds: float) -> float:
        return self.tokens / seconds

    @property
    def quantity(self) -> str:
        return f"{self.figure.title} of {self.phase} at {self.batch} x {self.length:,} tokens"
