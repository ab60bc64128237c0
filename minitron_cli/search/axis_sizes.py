"""Candidate sizes of an axis: a list, a range, sizes that follow from the hidden size, or a published table."""

import math
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from minitron_cli.choices import Preset
from minitron_cli.model.axes import Axis
from minitron_cli.spec import Spec

Size = Annotated[int, Field(ge=1)]


class Range(Spec):
    """Multiples of a step, up to the parent's size."""

    multiple_of: int | None = Field(None, ge=1)
    """Step; if absent, the largest serving-friendly one that leaves about a dozen sizes."""
    min: int | None = Field(None, ge=1)
    """Smallest size."""
    max: int | None = Field(None, ge=1)
    """Largest size; the parent's if absent."""
    max_pruned: float | None = Field(None, gt=0, lt=1)
    """Largest fraction of the parent's size that may be pruned, such as 0.25."""

    @model_validator(mode="after")
    def _is_not_empty(self) -> "Range":
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}; swap them")
        return self

    def bounds(self, size: int) -> tuple[int, int]:
        """Smallest and largest size, for a parent with `size` entries."""
        least = 1 if self.max_pruned is None else math.ceil(round((1 - self.max_pruned) * size, 9))
        return max(least, self.min or 1), min(size, self.max or size)


class FfnMultiple(Spec):
    """Sizes of `ffn` as multiples of the child's hidden size, as in the paper's tables."""

    of_hidden: tuple[Annotated[float, Field(gt=0)], ...] = Field(min_length=1)
    """Multiples, such as [2.5, 3, 3.5, 4]."""

    def sizes(self, hidden: int) -> tuple[int, ...]:
        """Sizes of `ffn` for a child with `hidden` channels."""
        return tuple(round(factor * hidden) for factor in self.of_hidden)


class HeadsOfHidden(Spec):
    """Number of heads that follows from the child's hidden size, as some programs assume (docs/serving.md)."""

    fills: Literal["hidden"]
    """hidden: as many heads as make heads x head_dim the child's hidden size."""


class Choices(Spec):
    """Sizes of which those up to the parent's are used; sizes in a plain list must all fit the parent."""

    among: tuple[Size, ...] = Field(min_length=1)
    """Sizes; those above the parent's are skipped."""


def _check_choice(value: Any) -> Any:
    if isinstance(value, str | int | float):
        raise ValueError(
            f"{value!r} is not a choice of sizes; write [3072, 4096], {{multiple_of: 256}}, or [] for friendly steps"
        )
    if isinstance(value, dict) and "max_cut" in value:
        raise ValueError(f"the key max_cut is now called max_pruned; write max_pruned: {value['max_cut']}")
    return value


AxisSizes = Annotated[tuple[Size, ...] | Range | FfnMultiple | HeadsOfHidden | Choices, BeforeValidator(_check_choice)]

FFN_MULTIPLES = FfnMultiple(of_hidden=(2.5, 3, 3.5, 4))
PRESETS: dict[Preset, dict[Axis, AxisSizes]] = {
    "nemotron-15b-to-8b": {
        "layer": Choices(among=(29, 30, 31, 32)),
        "head": Choices(among=(32, 48)),
        "hidden": Choices(among=(4096, 4608, 5120, 5632, 6144)),
        "ffn": FFN_MULTIPLES,
    },
    "nemotron-15b-to-4b": {
        "layer": Choices(among=(29, 30, 31, 32)),
        "head": Choices(among=(24, 32, 48)),
        "hidden": Choices(among=(2560, 3072, 3584, 4096, 4608)),
        "ffn": FFN_MULTIPLES,
    },
}
"""Search spaces of the 8B and the 4B model (Muralidharan et al. 2024, table 12)."""
