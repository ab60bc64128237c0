"""Constraint on the number of parameters of a child."""

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator

from minitron_cli.figures import Figure
from minitron_cli.model.axes import Count
from minitron_cli.prune.config import Budget
from minitron_cli.search.constraints.base import Between, Counted, Limits
from minitron_cli.spec import Amount, Target, of_whole

if TYPE_CHECKING:
    from minitron_cli.model.shape import Shape


class Parameters(Between, Counted):
    """Number of parameters, around a target or between limits."""

    figure: ClassVar[Figure] = Figure("parameters", style="count", better="lower")

    kind: Literal["parameters"] = "parameters"
    count: Count = "total"
    """Parameters that are counted; active: those that one token uses."""
    target: Target | None = None
    """Count such as 4B, or share of the parent's."""
    tolerance: float = Field(0.05, gt=0, lt=1)
    """Largest distance from the target on either side, as a fraction of it."""
    at_least: Amount | None = None
    """Lower limit, instead of a target."""
    at_most: Amount | None = None
    """Upper limit, instead of a target."""

    @classmethod
    def of(cls, budget: Budget) -> "Parameters":
        """Constraint that a budget stands for."""
        return cls(count=budget.count, target=budget.target, tolerance=budget.tolerance)

    @model_validator(mode="after")
    def _has_a_target_or_limits(self) -> "Parameters":
        if self.target is not None and (self.at_least is not None or self.at_most is not None):
            raise ValueError("give a target, or at_least and at_most, not both")
        return self

    def _has_other_limits(self) -> bool:
        return self.target is not None

    def cost(self, shape: "Shape") -> float:
        return shape.parameters(self.count)

    def limits(self, whole: float) -> Limits:
        if self.target is None:
            return super().limits(whole)
        goal = round(of_whole(self.target, whole))
        return Limits(goal - self.tolerance * goal, goal + self.tolerance * goal)

    @property
    def quantity(self) -> str:
        return f"{self.count} {self.figure.title}"

    def demand(self, whole: float) -> str:
        if self.target is None:
            return super().demand(whole)
        return f"{self.figure.text(of_whole(self.target, whole))} {self.quantity} within {100 * self.tolerance:.3g}%"
