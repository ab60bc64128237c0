"""How long a child takes here, measured."""

from typing import Literal

from minitron_cli.search.constraints.base import Between, Timed
from minitron_cli.spec import Reading


class Latency(Between, Timed):
    """Milliseconds of one turn: of the prompt's forward pass, or of one more token."""

    kind: Literal["latency"] = "latency"
    at_least: Reading | None = None
    """No faster than this; of use to leave out what is too small."""
    at_most: Reading | None = None
    """Milliseconds, or a share of the parent's, timed in turn with it."""

    def of_turn(self, seconds: float) -> float:
        return 1000 * seconds

    @property
    def title(self) -> str:
        return f"latency of {self.phase} at {self.batch} x {self.length:,} tokens"

    def format(self, value: float) -> str:
        return f"{value:,.3g} ms"
