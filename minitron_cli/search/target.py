"""Targets of a search: the shapes that meet the constraints of each, and those of them that are scored."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

from minitron_cli.choices import ServingLint
from minitron_cli.model.shape import Shape
from minitron_cli.prune.child_builder import ChildBuilder
from minitron_cli.search import feasible
from minitron_cli.search.axis_sizes import AxisSizes
from minitron_cli.search.config import SearchConfig
from minitron_cli.search.constraints import Constraint
from minitron_cli.search.constraints.base import Timed
from minitron_cli.search.feasible import Candidate
from minitron_cli.search.latency_probe import LatencyProbe
from minitron_cli.search.retained_importance import RetainedImportance
from minitron_cli.search.work_sharing import Costs, WorkerGroup


@dataclass(frozen=True)
class Target:
    """One target of a search, and the shapes that meet its counted constraints."""

    label: str
    constraints: Sequence[Constraint]
    space: Mapping[str, AxisSizes]
    admitted: Sequence[Candidate]

    @classmethod
    def of(cls, config: SearchConfig, label: str, parent: Shape, serving_lint: ServingLint = "refuse") -> Self:
        """Target of this label. InfeasibleError if no shape meets the constraints."""
        found = feasible.searched(parent, config, label, serving_lint)
        return cls(label, config.constraints_of(label), *found)

    def ordered(self, builder: ChildBuilder) -> list[Candidate]:
        """Shapes that meet the counted constraints, that which retains most importance first."""
        return RetainedImportance(builder.parent.shape, builder.scores, builder.ranking).order(self.admitted)

    def chosen(self, builder: ChildBuilder, most: int, workers: WorkerGroup) -> list[Candidate]:
        """The `most` candidates that retain most importance and meet the timed constraints, if there are any."""
        parent, ordered = builder.parent.shape, self.ordered(builder)
        if not any(isinstance(constraint, Timed) for constraint in self.constraints):
            return ordered[:most]

        def costs() -> Costs:
            found = feasible.timed(parent, ordered, self.constraints, most, LatencyProbe(builder))
            return {c.name: dict(c.costs) for c in found}

        timed = workers.from_rank0(f"timed-{self.label}", costs)
        return [replace(c, costs=timed[c.name]) for c in ordered if c.name in timed]
