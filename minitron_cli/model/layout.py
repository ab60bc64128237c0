"""A tensor's layout, written in named model axes. Knows no family and no file.

    "hidden"                            a vector over the residual stream
    "(head head_dim) hidden"            dim 0 is head-major, as `q_proj` stores it
    "(ffn + ffn) hidden"                dim 0 stacks two sections (fused gate and up)

A dim is a sum of sections and a section is a product of factors; a factor is an axis name or a literal
size. Every use of a layout (shape, selection, count) is a walk over that sum of products.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

Factor = str | int
Section = tuple[Factor, ...]
Dim = tuple[Section, ...]
Kept = Callable[[str], Tensor | None]
"""Axis -> surviving indices, or None where all survive."""


@dataclass(frozen=True)
class Layout:
    """Dims of a tensor, each a sum of products of axes."""

    dims: tuple[Dim, ...]

    def __str__(self) -> str:
        return " ".join(map(_spell, self.dims))

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Shape of the tensor at these axis sizes."""
        return tuple(sum(_size(section, sizes) for section in dim) for dim in self.dims)

    def lengths(self, dim: int, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Number of positions of each section of a dim."""
        return tuple(_size(section, sizes) for section in self.dims[dim])

    def axes(self, dim: int) -> frozenset[str]:
        """Named axes of one dim; none of a dim that the tensor does not have."""
        return frozenset(
            f for sections in self.dims[dim:][:1] for section in sections for f in section if isinstance(f, str)
        )

    def indices(self, kept: Kept, sizes: Mapping[str, int]) -> tuple[Tensor | None, ...]:
        """Per dim, the positions that survive (int64, in the order `kept` gives); None where the dim is whole."""
        return tuple(_surviving(dim, kept, sizes) for dim in self.dims)

    def select(self, tensor: Tensor, kept: Kept, sizes: Mapping[str, int]) -> Tensor:
        """The entries that survive; a tensor that keeps all is returned as it is."""
        for d, index in enumerate(self.indices(kept, sizes)):
            if index is not None:
                tensor = tensor.index_select(d, index)
        return tensor


@cache
def parse(text: str) -> Layout:
    """Layout from text such as `"(head head_dim) hidden"`. ValueError if the text cannot be read."""
    groups = re.findall(r"\(([^()]*)\)|([^\s()]+)", text)
    layout = Layout(tuple(_dim(inner or bare) for inner, bare in groups))
    if str(layout) != " ".join(text.split()):
        raise ValueError(f"cannot read the layout {text!r}: write dims as axis names, products and sums in parentheses")
    return layout


def _dim(text: str) -> Dim:
    return tuple(tuple(int(f) if f.isdigit() else f for f in part.split()) for part in text.split("+"))


def _spell(dim: Dim) -> str:
    text = " + ".join(" ".join(map(str, section)) for section in dim)
    return f"({text})" if " " in text else text


def _size(section: Section, sizes: Mapping[str, int]) -> int:
    return math.prod(f if isinstance(f, int) else sizes[f] for f in section)


def _surviving(dim: Dim, kept: Kept, sizes: Mapping[str, int]) -> Tensor | None:
    if all(isinstance(f, int) or kept(f) is None for section in dim for f in section):
        return None
    offset, parts = 0, []
    for section in dim:
        index = torch.zeros(1, dtype=torch.long)
        for factor in section:  # row-major: each factor refines the index built so far
            size = factor if isinstance(factor, int) else sizes[factor]
            survivors = None if isinstance(factor, int) else kept(factor)
            survivors = torch.arange(size) if survivors is None else survivors
            index = (index[:, None] * size + survivors).flatten()
        parts.append(index + offset)
        offset += _size(section, sizes)
    return torch.cat(parts)
