"""Patterns of zeros in a weight: N of M consecutive inputs kept, or a share of all weights. Importable without torch.

Knows scores and masks; not where scores come from, nor which weights of a model are meant.
"""

import re
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import TYPE_CHECKING

from minitron_cli.errors import InputError, shown

if TYPE_CHECKING:
    from torch import Tensor

PAIRWISE_UP_TO = 16  # weights of a group; beyond that sorting is faster than comparing each with each
SHARE_DIGITS = 12
"""Decimal places of a share that is computed: written so, fewer weights than one are missed in any model."""
IN_A_BYTE = (1, 2, 4, 8)
"""Groups that are whole in a byte of a packed mask."""
HALVES = ((1, 0x55), (2, 0x33), (4, 0x0F))  # width of a part of a byte -> every other one
HOW_TO_WRITE = "write N:M such as 2:4 (N of M consecutive inputs are kept), or a share of zeros such as 50% or 0.5"


@dataclass(frozen=True)
class Pattern:
    """How many weights are zero, and whether that holds for every group of consecutive inputs or for a whole."""

    zeros: Fraction
    """Share of weights that are zero, 0 <= zeros < 1."""
    group: int | None = None
    """M of N:M; None if only the share is set."""

    @classmethod
    def parse(cls, text: str) -> "Pattern":
        """Pattern written as `2:4`, `50%` or `0.5`. InputError for anything else."""
        text = str(text).strip()
        if found := re.fullmatch(r"(\d{1,4}):(\d{1,4})", text):
            kept, group = int(found[1]), int(found[2])
            if not 1 <= kept <= group:
                raise InputError(f"{text} keeps {kept} of {group} weights: keep from 1 to {group} of them")
            return cls(1 - Fraction(kept, group), group)
        if found := re.fullmatch(r"(\d{1,3}(?:\.\d{1,15})?)\s*%|(0?\.\d{1,17}|0)", text):
            zeros = Fraction(found[1]) / 100 if found[1] else Fraction(found[2])
            if zeros < 1:
                return cls(zeros)
        raise InputError(f"{shown(text)} is not a pattern of zeros: {HOW_TO_WRITE}")

    def __str__(self) -> str:
        if self.group:
            return f"{self.group - self.zeros * self.group}:{self.group}"
        percent = self.zeros * 100
        return f"{(Decimal(percent.numerator) / percent.denominator).normalize():f}%"

    def part(self, number: int, of: int) -> "Pattern":
        """Pattern after so many of several equal rounds: that share of its zeros; of N:M, whole weights of a group.

        After every round a mask with the pattern before can be continued to one with this pattern.
        """
        if self.group:
            return Pattern(Fraction(-(-self.lost(self.group) * number // of), self.group), self.group)
        if number == of:
            return self
        return Pattern(Fraction(round(self.zeros * number / of * 10**SHARE_DIGITS), 10**SHARE_DIGITS))

    def continues(self, before: "Pattern") -> bool:
        """Whether any mask with the pattern `before` becomes one with this pattern when further weights go."""
        return self.zeros >= before.zeros and self.group in (None, before.group)

    def lost(self, count: int) -> int:
        """Zeros among `count` weights: the share of them, rounded down."""
        return int(self.zeros * count)

    def fits(self, inputs: int) -> bool:
        """Whether `inputs` consecutive weights are a whole number of groups."""
        return self.group is None or inputs % self.group == 0

    def check(self, inputs: int, name: str) -> None:
        """Raise InputError unless the `inputs` of the weight called `name` are a whole number of groups."""
        if not self.fits(inputs):
            raise InputError(
                f"{name} has {inputs:,} inputs, which are no whole number of groups of {self.group}: "
                f"use a pattern whose group size divides {inputs:,}, or a share such as 50%"
            )

    def keep(self, scores: "Tensor", axis: int | None = -1) -> "Tensor":
        """Bool mask of the weights to keep: the highest scores; of equal ones those with the lower index.

        `axis` is the inputs' axis: groups lie along it from index 0, and a share is taken of each line along it. With
        None a share is taken of the whole tensor. InputError if the groups do not divide the axis.
        """
        if axis is None:
            assert self.group is None, "groups lie along an axis"
            return self._keep_share(scores.reshape(1, -1)).reshape(scores.shape)
        self.check(scores.shape[axis], f"axis {axis % scores.ndim} of a weight")
        lines = scores.movedim(axis, -1)
        if self.group is None:
            return self._keep_share(lines).movedim(-1, axis)
        groups = lines.unflatten(-1, (-1, self.group))
        return highest(groups, self.group - self.lost(self.group)).flatten(-2).movedim(-1, axis)

    def holds(self, mask: "Tensor", axis: int | None = -1) -> bool:
        """Whether a mask has exactly as many zeros as the pattern says, in every group or line along `axis`."""
        import torch

        if axis is None:
            return self.group is None and int((~mask).sum()) == self.lost(mask.numel())
        lines = mask.movedim(axis, -1)
        if not self.fits(lines.shape[-1]):
            return False
        groups = lines.unflatten(-1, (-1, self.group)) if self.group else lines
        size = groups.shape[-1]
        kept = groups.sum(-1, dtype=torch.uint8 if size < 256 else torch.int64)  # bytes are summed faster
        return bool((kept == size - self.lost(size)).all())

    def holds_in_bits(self, bits: "Tensor") -> bool:
        """Whether every byte of a packed mask (`mask_file.pack`) has whole groups, each with the right number of ones.

        Only for groups that are whole in a byte, and follow each other in memory.
        """
        assert self.group in IN_A_BYTE
        ones, kept = bits.numpy(), self.group - self.lost(self.group)
        for width, lower in HALVES:
            if width < self.group:  # twice as wide counts, from those of neighbors
                ones = (ones & lower) + (ones >> width & lower)
        wanted = sum(kept << place for place in range(0, 8, self.group))
        return bool((ones == wanted).all())

    def _keep_share(self, lines: "Tensor") -> "Tensor":
        return highest(lines, lines.shape[-1] - self.lost(lines.shape[-1]))


def highest(scores: "Tensor", count: int) -> "Tensor":
    """Mask of the `count` highest scores along the last axis; of equal ones those with the lower index."""
    import torch

    from minitron_cli.sparse import groups

    size = scores.shape[-1]
    if count == size or not scores.numel():
        return torch.ones_like(scores, dtype=torch.bool)
    if groups.are_quick(scores, size):
        return groups.largest(scores, count)
    if size <= PAIRWISE_UP_TO:
        return (_ranks(scores) < count).movedim(0, -1)
    least = scores.kthvalue(size - count + 1, dim=-1, keepdim=True).values
    above, equal = scores > least, scores == least
    room = count - above.sum(-1, keepdim=True, dtype=torch.int32)
    return above | (equal & (equal.cumsum(-1, dtype=torch.int32) <= room))


def _ranks(scores: "Tensor") -> "Tensor":
    """Number of weights along the last axis that go before each: higher ones, and equal ones with a lower index.

    [size, ...], int8: the last axis comes first, because neighbors in memory are compared twice as fast.
    """
    import torch

    lines = scores.movedim(-1, 0).contiguous()
    size = len(lines)
    order = torch.arange(size, dtype=torch.int8, device=scores.device)  # each goes behind all before it, until beaten
    ranks = order.reshape(size, *[1] * (lines.ndim - 1)).repeat(1, *lines.shape[1:])
    for later in range(1, size):
        for earlier in range(later):
            is_higher = (lines[later] > lines[earlier]).view(torch.int8)
            ranks[earlier] += is_higher
            ranks[later] -= is_higher
    return ranks
