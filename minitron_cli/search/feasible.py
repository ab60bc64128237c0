"""Shapes that meet every constraint; if none does, the binding constraint and the nearest shapes."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from minitron_cli.choices import ServingLint
from minitron_cli.errors import InfeasibleError
from minitron_cli.figures import Figure
from minitron_cli.model.serving import deriving_head_size
from minitron_cli.model.shape import Shape
from minitron_cli.prune.config import Budget, PruneConfig
from minitron_cli.search.axis_sizes import AxisSizes, HeadsOfHidden
from minitron_cli.search.config import SearchConfig
from minitron_cli.search.constraints import Constraint, cost_names
from minitron_cli.search.constraints.base import Bounded, Clock, Counted, Limits, Timed
from minitron_cli.search.constraints.memory import Memory
from minitron_cli.search.constraints.parameters import Parameters
from minitron_cli.search.space import smaller, unevenness

NEAREST = 3  # shapes that an error names
WITH_HIDDEN = "with hidden"
"""Input of a stage that prunes heads with hidden; others have none, so that their keys stay as they were."""

OFF_TARGET = Figure("off target", style="share")
RETAINED_IMPORTANCE = Figure("importance kept", style="share", better="higher")
"""Presents exp(`Candidate.costs["log_retained"]`): the product over the pruned axes of the shares that are kept."""


@dataclass(frozen=True)
class Candidate:
    """A feasible shape and its costs."""

    shape: Shape
    parameters: int
    """Parameters as the budget counts them."""
    error: float | None
    """Signed distance from the target as a fraction of it; None without a target."""
    costs: Mapping[str, float] = field(default_factory=dict, compare=False)
    """Name of a cost (`constraints.cost_names`) -> cost; always has `memory`, and `log_retained`, once ranked."""

    @property
    def name(self) -> str:
        """Sizes of the shape, as text."""
        return str(self.shape)


class Costed(NamedTuple):
    """A shape with its cost and limits under each constraint, in the order of the constraints."""

    shape: Shape
    costs: tuple[float, ...]
    limits: tuple[Limits, ...]

    def misses(self) -> list[float]:
        """Signed relative distance from the limits of each constraint; 0 where it is met."""
        return [limits.miss(cost) for cost, limits in zip(self.costs, self.limits, strict=True)]


class Admitted(NamedTuple):
    """Shapes that meet every counted constraint, and the space that they are of."""

    space: Mapping[str, AxisSizes]
    candidates: list[Candidate]


def within_budget(parent: Shape, config: PruneConfig) -> list[Candidate]:
    """Shapes within a pruning's budget, those that scale all axes most evenly first.

    InfeasibleError if there is none.
    """
    assert config.budget
    space: dict[str, AxisSizes] = dict.fromkeys(config.axes, ())
    found = runnable if config.serving_lint == "refuse" else of_space
    return by_evenness(parent, *found(parent, space, [Parameters.of(config.budget)]))


def searched(parent: Shape, config: SearchConfig, label: str, serving_lint: ServingLint) -> Admitted:
    """Shapes that meet the counted constraints of a search's target. InfeasibleError if there is none."""
    is_free = serving_lint == "warn" or not config.is_space_by_default
    return (of_space if is_free else runnable)(parent, config.axes, config.constraints_of(label))


def runnable(parent: Shape, space: Mapping[str, AxisSizes], constraints: Sequence[Constraint]) -> Admitted:
    """Shapes that meet every counted constraint. InfeasibleError if there is none.

    Where vLLM or llama.cpp runs the parent, and no child whose hidden size is not heads x head_dim, heads are pruned
    with `hidden`; not if no such shape meets the constraints.
    """
    if heads_with_hidden(parent, space):
        with suppress(InfeasibleError):
            return of_space(parent, {**space, "head": HeadsOfHidden(fills="hidden")}, constraints)
    return of_space(parent, space, constraints)


def heads_with_hidden(parent: Shape, space: Iterable[str]) -> list[str]:
    """Programs for which `runnable` prunes heads with `hidden`; none if it does not."""
    return deriving_head_size(parent) if "hidden" in space else []


def of_space(parent: Shape, space: Mapping[str, AxisSizes], constraints: Sequence[Constraint]) -> Admitted:
    """Shapes of a space as it is."""
    return Admitted(space, admitted(parent, space, constraints))


def feasible(parent: Shape, space: Mapping[str, AxisSizes], budget: Budget) -> list[Candidate]:
    """Shapes of the grid within a budget, those that scale all axes most evenly first.

    InfeasibleError names the nearest shapes.
    """
    return by_evenness(parent, space, admitted(parent, space, [Parameters.of(budget)]))


def by_evenness(parent: Shape, space: Mapping[str, AxisSizes], candidates: Sequence[Candidate]) -> list[Candidate]:
    """Candidates, those that scale the axes of the space most evenly first."""
    return sorted(candidates, key=lambda c: (round(unevenness(parent, c.shape, space), 6), abs(c.error or 0.0), c.name))


def admitted(parent: Shape, space: Mapping[str, AxisSizes], constraints: Sequence[Constraint]) -> list[Candidate]:
    """Shapes of the grid that meet every counted constraint. InfeasibleError if there is none."""
    counted = [constraint for constraint in constraints if isinstance(constraint, Counted)]
    wholes = [constraint.cost(parent) for constraint in counted]
    limits = tuple(constraint.limits(whole) for constraint, whole in zip(counted, wholes, strict=True))
    _refuse_growth(counted, limits, wholes)
    shapes = smaller(parent, space)
    rows = (_costed(shape, counted, limits) for shape in shapes)
    found = [row for row in rows if row is not None]
    if not found:
        every = [Costed(shape, tuple(constraint.cost(shape) for constraint in counted), limits) for shape in shapes]
        raise InfeasibleError(_why_not(counted, wholes, every))
    return [_candidate(row, counted) for row in found]


def _costed(shape: Shape, constraints: Sequence[Counted], limits: tuple[Limits, ...]) -> Costed | None:
    """Costs of a shape; None if it violates a constraint. Stops at the first: there may be 100,000 shapes."""
    costs = []
    for constraint, limit in zip(constraints, limits, strict=True):
        costs.append(constraint.cost(shape))
        if not limit.admit(costs[-1]):
            return None
    return Costed(shape, tuple(costs), limits)


def _refuse_growth(constraints: Sequence[Bounded], limits: Sequence[Limits], wholes: Sequence[float]) -> None:
    for constraint, limit, whole in zip(constraints, limits, wholes, strict=True):
        if isinstance(constraint, Parameters) and constraint.target is not None:
            goal = (limit.low + limit.high) / 2
            if goal > whole:
                raise InfeasibleError(
                    f"target {round(goal):,} is above the parent's {whole:,} {constraint.count} parameters: "
                    "choose a smaller target"
                )


def _candidate(row: Costed, constraints: Sequence[Constraint]) -> Candidate:
    costs: dict[str, float] = {
        name: cost
        for name, constraint, cost in zip(cost_names(constraints), constraints, row.costs, strict=True)
        if constraint.is_compared and not isinstance(constraint, Parameters)  # counted by the candidate itself
    }
    costs.setdefault("memory", Memory(at_most="100%").cost(row.shape))
    for constraint, cost, limits in zip(constraints, row.costs, row.limits, strict=True):
        if isinstance(constraint, Parameters) and constraint.target is not None:
            return Candidate(row.shape, round(cost), cost / ((limits.low + limits.high) / 2) - 1, costs)
    return Candidate(row.shape, row.shape.parameters(), None, costs)


def timed(
    parent: Shape, candidates: Sequence[Candidate], constraints: Sequence[Constraint], most: int, clock: Clock
) -> list[Candidate]:
    """The first `most` candidates that also meet the measured constraints; times no more than needed."""
    measured = [constraint for constraint in constraints if isinstance(constraint, Timed)]
    if not measured:
        return list(candidates[:most])
    found: list[Candidate] = []
    costed: list[Costed] = []
    wholes: list[float] = []
    for candidate in candidates:
        costs = [constraint.measure(candidate.shape, parent, clock) for constraint in measured]
        wholes = [cost.whole for cost in costs]
        limits = tuple(constraint.limits(cost.whole) for constraint, cost in zip(measured, costs, strict=True))
        costed.append(Costed(candidate.shape, tuple(cost.value for cost in costs), limits))
        if not any(costed[-1].misses()):
            values = {name: cost.value for name, cost in zip(cost_names(measured), costs, strict=True)}
            found.append(replace(candidate, costs=dict(candidate.costs) | values))
        if len(found) == most:
            break
    if not found:
        raise InfeasibleError(_why_not(measured, wholes, costed))
    return found


def _why_not(constraints: Sequence[Bounded], wholes: Sequence[float], costed: Sequence[Costed]) -> str:
    """Message about the binding constraint: without it most shapes are feasible, or it excludes most."""
    misses = [row.misses() for row in costed]
    without = [sum(not any(m[:i] + m[i + 1 :]) for m in misses) for i in range(len(constraints))]
    alone = [sum(bool(m[i]) for m in misses) for i in range(len(constraints))]
    worst = max(range(len(constraints)), key=lambda i: (without[i], alone[i], -i))
    others = [m[:worst] + m[worst + 1 :] for m in misses]
    pool = [row for row, m in zip(costed, others, strict=True) if not any(m)] or costed
    listed = "; ".join(_miss(constraints[worst], worst, row) for row in _nearest(pool))
    if isinstance(constraints[worst], Parameters) and len(constraints) == 1:
        return (
            f"no shape has {constraints[worst].demand(wholes[worst])}: nearest {listed}; "
            "widen the tolerance, move the target or allow more sizes"
        )
    missed = f"{without[worst]:,} miss only" if without[worst] else f"{alone[worst]:,} miss"
    return (
        f"no shape of {len(costed):,} meets every constraint: {missed} {constraints[worst].demand(wholes[worst])}; "
        f"nearest {listed}; relax it or allow more sizes"
    )


def _nearest(costed: Sequence[Costed]) -> list[Costed]:
    return sorted(costed, key=lambda row: (sum(map(abs, row.misses())), str(row.shape)))[:NEAREST]


def _miss(constraint: Bounded, place: int, row: Costed) -> str:
    cost, limits = row.costs[place], row.limits[place]
    off = limits.miss(cost)
    if isinstance(constraint, Parameters) and constraint.target is not None:
        off = cost / ((limits.low + limits.high) / 2) - 1
    return f"{row.shape} has {constraint.figure.text(cost)} ({off:+.1%})"
