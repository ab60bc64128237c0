"""The positions of a batch that a student learns from: those at which it is least sure."""

# N scored token, S chosen token

import math
from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from minitron_cli.spec import Spec


class PositionChoice(Spec):
    """Learn from a part of the positions of each block: with the 20 % of the highest student entropy a student
    was as good as with all (SE-KD, Qwen3-8B to 1.7B)."""

    select: Literal["student_entropy"] = "student_entropy"
    """What positions are ordered by: the entropy of the student's distribution."""
    share: float = Field(0.2, gt=0, le=1)
    """Share of the scored positions, rounded up."""

    def counts(self, blocks: Sequence[int]) -> list[int]:
        """Number of positions that are chosen in each block, of the number that it has."""
        return [self.count(positions) for positions in blocks]

    def count(self, positions: int) -> int:
        """Number of positions that are chosen in a block."""
        return min(positions, math.ceil(self.share * positions - 1e-9))
