"""Iterative pruning: the model that a round leaves is scored again before the next round (Muralidharan et al. 2024).

Round i of T prunes every axis to d_s - i (d_s - d_t) / T, from size d_s to size d_t. Only indices are carried over: the
child's weights are taken from the parent's at the end.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from math import ceil, prod

import torch

from minitron_cli.artifacts.build import StageBuild
from minitron_cli.model.shape import Shape
from minitron_cli.prune.child_builder import ChildBuilder
from minitron_cli.prune.limits import refusal
from minitron_cli.prune.plan import PrunePlan, make_plan
from minitron_cli.scores.scores import Scores

Rescore = Callable[[PrunePlan], Scores]


def plan_in_rounds(
    work: StageBuild, builder: ChildBuilder, child: Shape, rounds: int, rescore: Rescore
) -> tuple[PrunePlan, list[Shape]]:
    """Plan from the parent to `child`, and the shape after each round. Rounds that are done survive a kill."""
    shapes = shapes_between(builder.parent.shape, child, rounds)
    plan = builder.plan(shapes[0])
    for i, shape in enumerate(shapes[1:], start=1):
        further = partial(_next, builder, shape=shape, rescore=rescore)
        plan = _remembered(work, f"round-{i}", plan, further)
    return plan, shapes


def shapes_between(parent: Shape, child: Shape, rounds: int) -> list[Shape]:
    """Shape after each round; the last is the child's. Sizes are rounded up to what can be built.

    Each can be made of the one before, and the child of each: sizes that depend on each other and have no such values
    near wait for a later round. The parent must be able to become the child.
    """
    shapes = [parent]
    for i in range(1, rounds):
        shapes.append(_Round(parent, shapes[-1], child).shape(_between(parent, child, i / rounds)))
    return [*shapes[1:], child]


def _between(parent: Shape, child: Shape, share: float) -> dict[str, int]:
    """Size of each axis that the config states when this share of the way is gone, rounded up for the axis alone."""
    sizes = {axis: ceil(size - share * (size - child.sizes[axis])) for axis, size in parent.sizes.items()}
    sizes = {axis: size for axis, size in sizes.items() if axis not in parent.family.follows}
    sizes["layer"] += (parent.sizes["layer"] - sizes["layer"]) % parent.period
    for axis, of in parent.family.groups.items():
        sizes[axis] = sizes[of] * ceil(sizes[axis] / sizes[of])
    steps = dict.fromkeys(("hidden", "ffn"), parent.family.width_multiple) | {**parent.family.multiples}
    for axis, step in steps.items():
        sizes[axis] = min(parent.sizes[axis], step * ceil(sizes[axis] / step))
    return sizes


WAITING = ("head", "hidden", "kv_head")
"""Axes that wait for a later round before others do, where sizes depend on each other."""


@dataclass(frozen=True)
class _Round:
    """One round on the way from a parent to a child."""

    parent: Shape
    previous: Shape
    """Shape that the round prunes."""
    child: Shape

    def shape(self, wanted: Mapping[str, int]) -> Shape:
        """Shape with the wanted sizes, but of as few axes as must wait that of the previous shape."""
        before = self.previous.sizes
        changing = sorted((a for a in wanted if wanted[a] != before[a]), key=lambda a: (a not in WAITING, a))
        for count in range(len(changing) + 1):
            for waiting in combinations(changing, count):
                for shape in self._rounded({**wanted, **{axis: before[axis] for axis in waiting}}):
                    if self._is_on_the_way(shape):
                        return shape
        raise AssertionError("the previous shape is on the way itself")

    def _is_on_the_way(self, shape: Shape) -> bool:
        before, after = self.previous.sizes, self.child.sizes
        is_between = all(after[axis] <= size <= before[axis] for axis, size in shape.sizes.items())
        return is_between and refusal(self.previous, shape) is None and refusal(shape, self.child) is None

    def _rounded(self, wanted: Mapping[str, int]) -> Iterator[Shape]:
        """The wanted sizes with heads as groups need them, then with hidden as heads or a quotient may need it."""
        sizes = {**wanted, "head": self._heads(wanted)}
        if self.parent.keeps_hidden_per_head:
            sizes["hidden"] = sizes["head"] * (self.parent.sizes["hidden"] // self.parent.sizes["head"])
        yield self.parent.resize(**sizes)
        if sizes["head"] == self.previous.sizes["head"]:
            yield self.parent.resize(**sizes | {"hidden": sizes["head"] * ceil(sizes["hidden"] / sizes["head"])})
        for above, below in self.parent.family.quotients.values():
            if below == "hidden":
                product = prod(sizes[axis] for axis in above.split())
                yield self.parent.resize(**sizes | {"hidden": _divisor(product, sizes["hidden"])})

    def _heads(self, wanted: Mapping[str, int]) -> int:
        """Query heads near the wanted number, of which no group has more than before or fewer than in the child."""
        groups = wanted.get("kv_head", wanted["head"])
        most, least = (shape.sizes["head"] // shape.groups for shape in (self.previous, self.child))
        return groups * max(least, min(most, ceil(wanted["head"] / groups)))


def _divisor(number: int, least: int) -> int:
    """The smallest divisor of a number that is not below `least`; the number itself if none is."""
    return next((number // q for q in range(number // least, 1, -1) if number % q == 0), number)


def _remembered(work: StageBuild, name: str, plan: PrunePlan, further: Callable[[PrunePlan], PrunePlan]) -> PrunePlan:
    kept = work.remember(name, lambda: {axis: t.tolist() for axis, t in further(plan).kept.items()})
    return PrunePlan(plan.parent, {axis: torch.tensor(indices) for axis, indices in kept.items()})


def _next(builder: ChildBuilder, plan: PrunePlan, shape: Shape, rescore: Rescore) -> PrunePlan:
    return plan.then(make_plan(plan.child, shape, rescore(plan), builder.ranking))
