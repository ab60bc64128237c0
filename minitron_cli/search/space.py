"""Shapes that a parent can be pruned to."""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

from minitron_cli.errors import InfeasibleError, InputError
from minitron_cli.model.shape import Shape
from minitron_cli.prune.limits import refusal
from minitron_cli.prune.plan import named_survivors
from minitron_cli.search.axis_sizes import AxisSizes, Choices, FfnMultiple, HeadsOfHidden, Range

STEPS = (256, 128, 64, 32, 16, 8)  # GGUF k-quants need rows of 256, tensor cores 64; the rest is for tiny models
CHOICES_PER_AXIS = 12  # a larger step must leave about this many sizes


def choices(parent: Shape, axis: str, wanted: Range | None = None) -> tuple[int, ...]:
    """Serving-friendly sizes of one axis within a range, up to the parent's own."""
    wanted = wanted or Range()
    step = wanted.multiple_of or _step(parent, axis)
    least, most = wanted.bounds(parent.sizes[axis])
    if axis == "kv_head" and wanted == Range():
        return (parent.sizes[axis],)  # groups are pruned only on request
    least = max(least, parent.active.get(axis, 1))
    own = {parent.sizes[axis]} & {most}
    return tuple(sorted({*range(step * -(-least // step), most + 1, step), *own}))


def _step(parent: Shape, axis: str) -> int:
    size = parent.sizes[axis]
    if axis == "layer":
        return 1
    if axis == "head":
        return parent.sizes.get("kv_head", 1)
    if axis == "kv_head":
        return 1
    if axis in parent.family.groups:
        return parent.sizes[parent.family.groups[axis]]
    return next((s for s in STEPS if size // s >= CHOICES_PER_AXIS), STEPS[-1] if size >= 4 * STEPS[-1] else 1)


def grid(parent: Shape, space: Mapping[str, AxisSizes]) -> list[Shape]:
    """Every combination of sizes that the parent can be pruned to."""
    return [shape for shape in _combinations(parent, space) if refusal(parent, shape) is None]


def smaller(parent: Shape, space: Mapping[str, AxisSizes]) -> list[Shape]:
    """Shapes of the grid without the parent's own. InfeasibleError if there is none."""
    found = [shape for shape in grid(parent, space) if shape.sizes != parent.sizes]
    if found:
        return found
    refused = (reason for shape in _combinations(parent, space) if (reason := refusal(parent, shape)))
    if reason := next(refused, None):
        raise InfeasibleError(f"the space has no shape that the parent can be pruned to: {reason}")
    raise InfeasibleError("the space has no shape smaller than the parent: give more sizes")


def _combinations(parent: Shape, space: Mapping[str, AxisSizes]) -> Iterator[Shape]:
    _check(parent, space)
    axes = [axis for axis in space if not isinstance(space[axis], FfnMultiple | HeadsOfHidden)]
    for sizes in itertools.product(*(_sizes(parent, axis, space[axis]) for axis in axes)):
        yield from _expanded(parent, parent.resize(**dict(zip(axes, sizes, strict=True))), space)


def _check(parent: Shape, space: Mapping[str, AxisSizes]) -> None:
    for axis, sizes in space.items():
        if axis not in parent.sizes:
            raise InputError(f"the model has no axis {axis!r}: choose among {', '.join(parent.prunable)}")
        if isinstance(sizes, FfnMultiple) and axis != "ffn":
            raise InputError(f"search.space.{axis}: only ffn can be a multiple of hidden; list the sizes")
        if isinstance(sizes, HeadsOfHidden) and axis != "head":
            raise InputError(f"search.space.{axis}: only head can fill hidden; list the sizes")
        for size in sizes if isinstance(sizes, tuple) else ():
            parent.check_size(axis, size, "remove it from the space")


def _sizes(parent: Shape, axis: str, sizes: AxisSizes) -> Sequence[int]:
    if isinstance(sizes, Range):
        return choices(parent, axis, sizes)
    if isinstance(sizes, Choices):
        return [size for size in sizes.among if size <= parent.sizes[axis]]
    assert not isinstance(sizes, FfnMultiple | HeadsOfHidden)
    return sizes or choices(parent, axis)


def _expanded(parent: Shape, shape: Shape, space: Mapping[str, AxisSizes]) -> Iterator[Shape]:
    """The shape itself, or one shape for each multiple of its hidden size up to the parent's ffn size.

    None if its heads are to fill the hidden size and cannot.
    """
    if isinstance(space.get("head"), HeadsOfHidden):
        heads, rest = divmod(shape.sizes["hidden"], shape.sizes["head_dim"])
        if rest or not 0 < heads <= parent.sizes["head"]:
            return
        shape = shape.resize(head=heads)
    expansion = space.get("ffn")
    if not isinstance(expansion, FfnMultiple):
        yield shape
        return
    sizes = (size for size in expansion.sizes(shape.sizes["hidden"]) if 0 < size <= parent.sizes["ffn"])
    yield from (shape.resize(ffn=size) for size in sizes)


def named(parent: Shape, sizes: Mapping[str, int], drop_layers: Sequence[int] = ()) -> Shape:
    """Shape with the given sizes and dropped layers. InputError if the parent cannot be pruned to it."""
    survivors = named_survivors(parent, drop_layers)
    wanted = dict(sizes) | ({"layer": parent.sizes["layer"] - len(drop_layers)} if drop_layers else {})
    for axis, size in wanted.items():
        if axis not in parent.sizes:
            raise InputError(f"the model has no axis {axis!r}: choose among {', '.join(parent.prunable)}")
        parent.check_size(axis, size)
    shape = parent.resize(**wanted)
    if reason := refusal(parent, shape, survivors):
        raise InputError(reason)
    return shape


def unevenness(parent: Shape, child: Shape, axes: Iterable[str]) -> float:
    """Range of the kept ratios over the axes, in log units: 0 if every axis keeps the same share."""
    logs = [math.log(child.sizes[axis] / parent.sizes[axis]) for axis in axes]
    return max(logs) - min(logs)
