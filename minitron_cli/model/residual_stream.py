"""The residual stream of a family: through which norm each tensor reads it, and whether its basis may change.

An RMS norm without its weight commutes with every rotation. So a model that reads the stream only through RMS norms,
and writes to it through none, computes the same in any orthonormal basis once the norms' weights are folded into the
matrices that read them. All of this follows from the table and its links.
"""

from collections.abc import Iterator
from typing import NamedTuple

from minitron_cli.model.family import Family
from minitron_cli.model.layout import parse
from minitron_cli.model.shape import Shape

HIDDEN = (("hidden",),)
"""Layout of a dim that is the residual stream."""

OF_ALL_TOKENS = ("shared_ffn", "own_ffn")
"""Axes of the neurons of experts that all tokens use, beside those that a router chooses."""


def norm_of(family: Family) -> dict[str, str]:
    """Reader -> norm whose output it reads, as templates."""
    return {reader: norm for norm, readers in family.links.items() for reader in readers}


def foldable(shape: Shape) -> tuple[str, ...]:
    """Templates of the norms whose weight can be folded into all their readers; a tied head is no matrix of its own."""
    lost = set(shape.family.tied) - set(shape.templates)
    return tuple(norm for norm, readers in shape.family.links.items() if lost.isdisjoint(readers))


class Block(NamedTuple):
    """Attention or MLP of a layer: templates of the norm before it and of the matrix that writes to the stream."""

    norm: str | None
    """None where the stream is read without a norm."""
    writer: str | None
    """None where there is no single matrix, or none that reads heads or neurons: experts, a short convolution."""


def blocks(family: Family, layer: int) -> tuple[Block, ...]:
    """Attention and MLP of a layer, or what stands in their place, in the order in which they compute.

    A layer that is one of them has one block: both read one norm, and not both write.
    """
    attention, mlp = (Block(_norm_before(family, axis), _writer(family, axis, layer)) for axis in ("head", "ffn"))
    if attention.norm and attention.norm == mlp.norm and not (attention.writer and mlp.writer):
        return (Block(attention.norm, attention.writer or mlp.writer),)
    return attention, mlp


def _norm_before(family: Family, axis: str) -> str | None:
    """Norm whose readers produce the entries of an axis, heads or neurons."""
    return next((norm for reader, norm in norm_of(family).items() if axis in _axes(family, reader)), None)


def _writer(family: Family, axis: str, layer: int) -> str | None:
    of_layer = (t for t in family.tensors if "{expert}" not in t and family.holds(layer, t))
    made = (t for t in of_layer if len(parse(family.tensors[t]).dims) == 2)
    return next((t for t in made if _has(family, t, 1, axis)), None)


def shared_writer(family: Family, layer: int) -> str | None:
    """Template of the matrix by which the experts that all tokens use write to the stream; None in a layer without."""
    return next(filter(None, (_writer(family, axis, layer) for axis in OF_ALL_TOKENS)), None)


def expert_writer(family: Family) -> str | None:
    """Template of the matrix by which an expert writes to the stream; None without one that is stored outputs first."""
    of_experts = (t for t, text in family.tensors.items() if "{expert}" in t and len(parse(text).dims) == 2)
    return next((t for t in of_experts if t not in family.transposed and _has(family, t, 1, "ffn")), None)


def _axes(family: Family, template: str) -> frozenset[str]:
    layout = parse(family.tensors[template])
    return layout.axes(0) | layout.axes(1)


def _has(family: Family, template: str, dim: int, axis: str) -> bool:
    return axis in parse(family.tensors[template]).axes(dim)


def adds_as_it_is(family: Family) -> bool:
    """Whether a block's output is added to the stream as it is, or times a number, without a norm in between."""
    return family.adds_outputs and family.norm == "rms" and set(norms(family)) <= set(family.links)


def norms(family: Family) -> tuple[str, ...]:
    """Templates of all norms over the residual stream, in table order."""
    return tuple(t for t, layout in family.tensors.items() if layout == "hidden" and t.endswith(".weight"))


def rotation_obstacle(shape: Shape) -> str | None:
    """Reason why a model in another basis of the residual stream computes another function; None if it does not.

    A tied model computes nearly the same: of the weight of the norm before the head, only the diagonal in that basis is
    kept.
    """
    return next(_obstacles(shape), None)


def _obstacles(shape: Shape) -> Iterator[str]:
    family = shape.family
    if reason := family.not_prunable.get("hidden"):
        yield reason
    if family.norm != "rms":
        yield "its norms subtract the mean over channels, which depends on the basis"
    for norm in norms(family):
        if norm not in family.links:
            yield f"{norm} scales what is written to the residual stream, and no rotation commutes with that"
    readers = norm_of(family)
    for template in shape.templates:
        layout = parse(family.tensors[template])
        for d, dim in enumerate(layout.dims):
            if "hidden" in layout.axes(d) and dim != HIDDEN:
                yield f"{template} has the residual stream and another axis in one dim"
        inputs = 0 if template in family.transposed else -1
        reads = len(layout.dims) > 1 and layout.dims[inputs] == HIDDEN
        if reads and template not in readers and not shape.is_embedding(template):
            yield f"its table does not say through which norm {template} reads the stream"
