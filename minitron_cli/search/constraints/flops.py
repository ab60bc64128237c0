"""What a child computes."""

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from minitron_cli.search.constraints.base import Between, Counted
from minitron_cli.spec import Amount

if TYPE_CHECKING:
    from minitron_cli.model.shape import Shape


class Flops(Between, Counted):
    """Floating-point operations of one token's forward pass."""

    kind: Literal["flops"] = "flops"
    context: int = Field(0, ge=0)
    """Tokens that it attends to."""
    at_least: Amount | None = None
    """No fewer than this; of use to leave out what is too small."""
    at_most: Amount | None = None
    """No more than this, such as 9B, or 60% of the parent's."""

    def cost(self, shape: "Shape") -> float:
        return shape.flops_per_token(self.context)

    @property
    def title(self) -> str:
        return f"FLOP per token at {self.context:,} of context"
