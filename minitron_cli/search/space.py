"""Shapes that a parent can be cut to, and those of them that fit a budget."""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from minitron_cli.errors import InfeasibleError, InputError
from minitron_cli.model.shape import Shape
from minitron_cli.trim.plan import named_survivors
from minitron_cli.trim.refusal import refusal
from minitron_cli.trim.spec import Budget

STEPS = (256, 128, 64, 32, 16, 8)  # GGUF k-quants want rows of 256, tensor cores 64; tiny models take what fits
CHOICES_PER_AXIS = 12  # a step is friendly only while it leaves about this many sizes to choose from


@dataclass(frozen=True)
class Candidate:
    """A feasible shape and what its size costs."""

    shape: Shape
    parameters: int
    """In the budget's way of counting."""
    error: float
    """Signed distance from the target as a fraction of it."""

    @property
    def name(self) -> str:
        return str(self.shape)


def choices(parent: Shape, axis: str) -> tuple[int, ...]:
    """Serving-friendly sizes of one axis, up to the parent's own."""
    size = parent.sizes[axis]
    if axis == "layer":
        return tuple(range(1, size + 1))
    if axis == "head":
        groups = parent.sizes.get("kv_head", 1)
        return tuple(range(groups, size + 1, groups))
    if axis == "kv_head":
        return (size,)
    step = next((s for s in STEPS if size // s >= CHOICES_PER_AXIS), STEPS[-1] if size >= 4 * STEPS[-1] else 1)
    least = parent.active.get(axis, 1)
    return tuple(sorted({*range(step * -(-least // step), size + 1, step), size}))


def grid(parent: Shape, space: Mapping[str, Sequence[int]]) -> list[Shape]:
    """Every combination of sizes that the parent can be cut to."""
    return [shape for shape in _combinations(parent, space) if refusal(parent, shape) is None]


def _combinations(parent: Shape, space: Mapping[str, Sequence[int]]) -> list[Shape]:
    axes = list(space)
    for axis in axes:
        if too_large := [n for n in space[axis] if not 0 < n <= parent.sizes[axis]]:
            raise InputError(
                f"{axis}={too_large[0]} is not within 1 to the parent's {parent.sizes[axis]}: remove it from the space"
            )
    sizes = [tuple(space[axis]) or choices(parent, axis) for axis in axes]
    return [parent.resize(**dict(zip(axes, combination, strict=True))) for combination in itertools.product(*sizes)]


def named(parent: Shape, sizes: Mapping[str, int], drop_layers: Sequence[int] = ()) -> Shape:
    """The shape that a user spelled out. InputError if the parent cannot be cut to it."""
    wanted = dict(sizes) | ({"layer": parent.sizes["layer"] - len(drop_layers)} if drop_layers else {})
    for axis, size in wanted.items():
        if axis not in parent.sizes:
            raise InputError(f"the model has no axis {axis!r}: choose among {', '.join(parent.sizes)}")
        if not 0 < size <= parent.sizes[axis]:
            raise InputError(f"{axis}={size} is not within 1 to the parent's {parent.sizes[axis]}: choose another size")
    shape = parent.resize(**wanted)
    if reason := refusal(parent, shape, named_survivors(parent, drop_layers)):
        raise InputError(reason)
    return shape


def feasible(
    parent: Shape, space: Mapping[str, Sequence[int]], budget: Budget, most: int | None = None
) -> list[Candidate]:
    """The grid's shapes within the budget, nearest to an even cut of its axes first.

    InfeasibleError names the nearest misses.
    """
    available = parent.parameters(budget.count)
    if budget.target > available:
        raise InfeasibleError(
            f"target {budget.target:,} is above the parent's {available:,} {budget.count} parameters: "
            "choose a smaller target"
        )
    costed = [_candidate(shape, budget) for shape in _smaller(parent, space)]
    found = [candidate for candidate in costed if budget.admits(candidate.parameters)]
    if not found:
        raise InfeasibleError(_nearest_misses(costed, budget))
    found.sort(key=lambda c: (round(unevenness(parent, c.shape, space), 6), abs(c.error), c.name))
    return found[:most]


def _smaller(parent: Shape, space: Mapping[str, Sequence[int]]) -> list[Shape]:
    found = [shape for shape in grid(parent, space) if shape.sizes != parent.sizes]
    refused = (reason for shape in _combinations(parent, space) if (reason := refusal(parent, shape)))
    if not found and (reason := next(refused, None)):
        raise InfeasibleError(f"the space holds no shape that the parent can be cut to: {reason}")
    return found


def _candidate(shape: Shape, budget: Budget) -> Candidate:
    parameters = shape.parameters(budget.count)
    return Candidate(shape, parameters, budget.error(parameters))


def unevenness(parent: Shape, child: Shape, axes: Iterable[str]) -> float:
    """Spread of the kept ratios over the axes, in log units: 0 where every axis keeps the same share."""
    logs = [math.log(child.sizes[axis] / parent.sizes[axis]) for axis in axes]
    return max(logs) - min(logs)


def _nearest_misses(costed: list[Candidate], budget: Budget) -> str:
    if not costed:
        return "the space holds no shape smaller than the parent: give more sizes"
    nearest = sorted(costed, key=lambda c: (abs(c.error), c.name))[:3]
    listed = "; ".join(f"{c.name} has {c.parameters:,} ({c.error:+.1%})" for c in nearest)
    return (
        f"no shape has {budget.target:,} {budget.count} parameters within {budget.tolerance:.0%}: nearest {listed}; "
        "widen the tolerance, move the target or allow more sizes"
    )
