"""Sizes that a serving program takes for granted in its code for a family, and the nearest that it takes."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from minitron_cli.model.axes import PRUNABLE
from minitron_cli.model.family import KnownBySize
from minitron_cli.model.shape import Shape


class Broken(NamedTuple):
    """An assumption that a shape breaks."""

    reason: str
    nearest: Mapping[str, int]
    """Axis -> size, for the axes to change; empty where no size that the parent can be pruned to helps."""


def unequal(products: tuple[str, str], shape: Shape, parent: Shape) -> Iterator[Broken]:
    """What is broken where two products of axes and numbers differ; nothing where the model lacks one of the axes."""
    totals = [_product(words, shape.sizes) for words in products]
    if 0 in totals or totals[0] == totals[1]:
        return
    left, right = (" x ".join(words.split()) for words in products)
    reason = f"it takes {left} to be {right} for {shape.family.model_type}, and {totals[0]:,} is not {totals[1]:,}"
    fits = (
        _times(axis, (total, own), shape, parent)
        for words, total, own in zip(products, reversed(totals), totals, strict=True)
        for axis in words.split()
        if axis in shape.sizes
    )
    yield Broken(reason, next(filter(None, fits), {}))


def no_multiple(words: str, multiple: int, shape: Shape, parent: Shape) -> Iterator[Broken]:
    """What is broken where a product of axes is no multiple of a number; its first axis is the one to change."""
    total, axis = _product(words, shape.sizes), words.split()[0]
    if total % multiple == 0:
        return
    name, step = " x ".join(words.split()), _product(words, {**shape.sizes, axis: 1})
    sizes = (size for size in range(1, parent.sizes[axis] + 1) if size * step % multiple == 0)
    nearest = sorted(sizes, key=lambda size: (abs(size - shape.sizes[axis]), -size))
    fits = (_times(axis, (size, shape.sizes[axis]), shape, parent) for size in nearest)
    reason = f"it takes {name} to be a multiple of {multiple} for {shape.family.model_type}, and {total:,} is not"
    yield Broken(reason, next(filter(None, fits), {}))


def taken_for_another(known: KnownBySize, shape: Shape, parent: Shape) -> Iterator[Broken]:
    """What is broken where a program takes a model for one that it knows by its sizes, or for none of those."""
    is_known, kind = _is_one_of(known.sizes, shape.sizes), shape.family.model_type
    should_be = known.lacks not in shape.sizes if known.lacks else _is_one_of(known.sizes, parent.sizes)
    if is_known != should_be:
        models = " or ".join(" and ".join(f"{axis} {size:,}" for axis, size in one.items()) for one in known.sizes)
        where = "no others" if should_be else "this is one"
        reason = f"it takes {kind} models of {models} to have {known.differs}, and {where}"
        yield Broken(reason, _told_apart(known, shape, parent, should_be))
    elif is_known and known.keeps:
        over, under = known.keeps
        quotient = parent.sizes[over] // parent.sizes[under]
        if shape.sizes[over] // shape.sizes[under] != quotient:
            wanted = quotient * shape.sizes[under]
            reason = f"it computes with {over} / {under} in {kind} models of this size, which must stay {quotient:,}"
            yield Broken(reason, {over: wanted} if wanted <= parent.sizes[over] else {})


def _product(words: str, sizes: Mapping[str, int]) -> int:
    """Product of axes and numbers; 0 where the model lacks one of the axes."""
    return math.prod(int(word) if word.isdigit() else sizes.get(word, 0) for word in words.split())


def _times(axis: str, by: tuple[int, int], shape: Shape, parent: Shape) -> dict[str, int]:
    """An axis, or the one that it follows, times a fraction, if the parent can be pruned to that size; else empty."""
    family, leader = shape.family, shape.family.follows.get(axis, axis)
    wanted, rest = divmod(shape.sizes[leader] * by[0], by[1])
    if rest or leader not in PRUNABLE or leader in family.not_prunable or not 0 < wanted <= parent.sizes[leader]:
        return {}
    is_odd = (
        (leader in family.groups and wanted % shape.sizes[family.groups[leader]])
        or (leader in ("hidden", "ffn") and wanted % family.width_multiple)
        or (leader == "kv_head" and shape.sizes["head"] % wanted)
    )
    return {} if is_odd else {leader: wanted}


def _is_one_of(models: Sequence[Mapping[str, int]], sizes: Mapping[str, int]) -> bool:
    return any(all(sizes.get(axis) == size for axis, size in one.items()) for one in models)


def _told_apart(known: KnownBySize, shape: Shape, parent: Shape, should_be: bool) -> dict[str, int]:
    """The nearest size of the first axis that makes a model one of those known, or none of them."""
    axis = next(iter(known.sizes[0]))
    sizes = range(1, parent.sizes[axis] + 1)
    fit = [size for size in sizes if _is_one_of(known.sizes, {**shape.sizes, axis: size}) == should_be]
    return {axis: min(fit, key=lambda size: abs(size - shape.sizes[axis]))} if fit else {}
