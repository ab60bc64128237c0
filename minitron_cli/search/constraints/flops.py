"""Constraint on the floating-point operations of a child."""

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from minitron_cli.figures import Figure
from minitron_cli.search.constraints.base import Between, Counted
from minitron_cli.spec import Amount

if TYPE_CHECKING:
    from minitron_cli.model.shape import Shape


class Flops(Between, Counted):
    """Floating-point operations of one token's forward pass."""

    figure: ClassVar[Figure] = Figure("FLOPs per token", style="short", better="lower")

    kind: Literal["flops"] = "flops"
    context: int = Field(0, ge=0)
    """Tokens that the token attends to."""
    at_least: Amount | None = None
    """Lower limit; excludes shapes that are too small."""
    at_most: Amount | None = None
    """Upper limit, such as 9B, or 60% of the parent's."""

    def cost(self, shape: "Shape") -> float:
        return shape.flops_per_token(self.context)

    @property
    def quantity(self) -> str:
        return f"{self.figure.title} at {self.context:,} tokens of context"
