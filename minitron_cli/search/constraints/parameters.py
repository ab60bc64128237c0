"""How many parameters a child has."""

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from minitron_cli.model.axes import Count
from minitron_cli.prune.config import Budget
from minitron_cli.search.constraints.base import Between, Counted, Limits
from minitron_cli.spec import Amount, of_whole

if TYPE_CHECKING:
    from minitron_cli.model.shape import Shape


class Parameters(Between, Counted):
    """Parameters: around a target, or between limits."""

    kind: Literal["parameters"] = "parameters"
    count: Count = "total"
    """Which are counted; active: those that one token uses."""
    target: Amount | None = None
    """A count such as 4B, or a share of the parent's."""
    tolerance: float = Field(0.05, gt=0, lt=1)
    """How far from the target on either side, as a fraction of it."""
    at_least: Amount | None = None
    """Instead of a target: no fewer than this."""
    at_most: Amount | None = None
    """Instead of a target: no more than this."""

    @classmethod
    def of(cls, budget: Budget) -> "Parameters":
        """A budget is a short way to say this."""
        return cls(count=budget.count, target=budget.target, tolerance=budget.tolerance)

    @model_validator(mode="after")
    def _one_way_to_say_it(self) -> "Parameters":
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
    def title(self) -> str:
        return f"{self.count} parameters"

    def format(self, value: float) -> str:
        return f"{round(value):,}"

    def says(self, whole: float) -> str:
        if self.target is None:
            return super().says(whole)
        return f"{self.format(of_whole(self.target, whole))} {self.title} within {self.tolerance:.0%}"
