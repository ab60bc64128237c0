"""How many tokens a second a child makes here, measured."""

from typing import Literal

from minitron_cli.search.constraints.base import Between, Timed
from minitron_cli.spec import Reading


class Throughput(Between, Timed):
    """Tokens per second, read (prefill) or written (decode)."""

    kind: Literal["throughput"] = "throughput"
    at_least: Reading | None = None
    """Tokens per second, or a share of the parent's, such as 150%, timed in turn with it."""
    at_most: Reading | None = None
    """No more than this; of use to leave out what is too small."""

    def of_turn(self, seconds: float) -> float:
        return self.tokens / seconds

    @property
    def title(self) -> str:
        return f"throughput of {self.phase} at {self.batch} x {self.length:,} tokens"

    def format(self, value: float) -> str:
        return f"{value:,.4g} tokens/s"
