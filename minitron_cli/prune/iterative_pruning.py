"""Iterative pruning: the model that a round leaves is scored again before the next round (Muralidharan et al. 2024).

Round i of T prunes every axis to d_s - i (d_s - d_t) / T, from size d_s to size d_t. Only indices are carried over: the
child's weights are taken from the parent's at the end.
"""

from collections.abc import Callable
from functools import partial
from math import ceil

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
    """Shape after each round; the last is the child's. Sizes are rounded up to what can be built."""
    shapes = [_between(parent, child, i / rounds) for i in range(1, rounds)]
    return [*shapes, child]


def _between(parent: Shape, child: Shape, share: float) -> Shape:
    sizes = {axis: ceil(size - share * (size - child.sizes[axis])) for axis, size in parent.sizes.items()}
    sizes = {axis: size for axis, size in sizes.items() if axis not in parent.family.follows}
    groups = sizes.get("kv_head", 1)
    sizes["head"] = groups * ceil(sizes["head"] / groups)
    sizes["layer"] += (parent.sizes["layer"] - sizes["layer"]) % parent.period
    for axis, of in parent.family.groups.items():
        sizes[axis] = sizes[of] * ceil(sizes[axis] / sizes[of])
    steps = dict.fromkeys(("hidden", "ffn"), parent.family.width_multiple) | {**parent.family.multiples}
    for axis, step in steps.items():
        sizes[axis] = min(parent.sizes[axis], step * ceil(sizes[axis] / step))
    if parent.keeps_hidden_per_head:
        sizes["hidden"] = sizes["head"] * (parent.sizes["hidden"] // parent.sizes["head"])
    shape = parent.resize(**sizes)
    return shape if refusal(parent, shape) is None else _with_all_heads(parent, shape)


def _with_all_heads(parent: Shape, shape: Shape) -> Shape:
    """The shape with all heads of the parent, and hidden rounded up to a multiple of them."""
    sizes, heads = parent.sizes, parent.sizes["head"]
    hidden = min(sizes["hidden"], heads * ceil(shape.sizes["hidden"] / heads))
    return shape.resize(hidden=hidden, **{axis: sizes[axis] for axis in ("head", "kv_head") if axis in sizes})


def _remembered(work: StageBuild, name: str, plan: PrunePlan, further: Callable[[PrunePlan], PrunePlan]) -> PrunePlan:
    kept = work.remember(name, lambda: {axis: t.tolist() for axis, t in further(plan).kept.items()})
    return PrunePlan(plan.parent, {axis: torch.tensor(indices) for axis, indices in kept.items()})


def _next(builder: ChildBuilder, plan: PrunePlan, shape: Shape, rescore: Rescore) -> PrunePlan:
    return plan.then(make_plan(plan.child, shape, rescore(plan), builder.ranking))
