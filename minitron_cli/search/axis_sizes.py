"""How a user says which sizes an axis may take: a list, a range, a multiple of another axis, or a published table."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from minitron_cli.model.axes import Axis
from minitron_cli.spec import Spec


class Range(Spec):
    """Steps of one size, from the parent's downwards."""

    multiple_of: int | None = Field(None, ge=1)
    """Every size is one; if absent, the largest step that serving programs like and that leaves a dozen sizes."""
    min: int | None = Field(None, ge=1)
    """The least size."""
    max: int | None = Field(None, ge=1)
    """The largest size; if absent, the parent's."""
    max_cut: float | None = Field(None, gt=0, lt=1)
    """The largest share of the parent's size that may go, such as 0.25."""

    @model_validator(mode="after")
    def _holds_something(self) -> "Range":
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}; swap them")
        return self

    def bounds(self, size: int) -> tuple[int, int]:
        """The least and the most, of a parent with `size`."""
        least = 1 if self.max_cut is None else math.ceil(round((1 - self.max_cut) * size, 9))
        return max(least, self.min or 1), min(size, self.max or size)


class FfnMultiple(Spec):
    """Sizes of `ffn` as multiples of the child's hidden size, as the paper's tables have them."""

    of_hidden: tuple[float, ...] = Field(min_length=1)
    """The multiples, such as [2.5, 3, 3.5, 4]."""

    def sizes(self, hidden: int) -> tuple[int, ...]:
        return tuple(round(factor * hidden) for factor in self.of_hidden)


class Choices(Spec):
    """Those of some sizes that the parent has; a plain list must fit it whole."""

    among: tuple[int, ...] = Field(min_length=1)
    """The sizes; those above the parent's are left out."""


def _is_a_choice(value: Any) -> Any:
    if isinstance(value, str | int | float):
        raise ValueError(
            f"{value!r} is no choice of sizes; write [3072, 4096], {{multiple_of: 256}}, or [] for friendly ones"
        )
    return value


AxisSizes = Annotated[tuple[int, ...] | Range | FfnMultiple | Choices, BeforeValidator(_is_a_choice)]
Space = Mapping[Axis, AxisSizes]
Preset = Literal["nemotron-15b-to-8b", "nemotron-15b-to-4b"]

EXPANSIONS = FfnMultiple(of_hidden=(2.5, 3, 3.5, 4))
PRESETS: dict[Preset, dict[Axis, AxisSizes]] = {
    "nemotron-15b-to-8b": {
        "layer": Choices(among=(29, 30, 31, 32)),
        "head": Choices(among=(32, 48)),
        "hidden": Choices(among=(4096, 4608, 5120, 5632, 6144)),
        "ffn": EXPANSIONS,
    },
    "nemotron-15b-to-4b": {
        "layer": Choices(among=(29, 30, 31, 32)),
        "head": Choices(among=(24, 32, 48)),
        "hidden": Choices(among=(2560, 3072, 3584, 4096, 4608)),
        "ffn": EXPANSIONS,
    },
}
"""Table 12 of Muralidharan et al. 2024: what was searched for the 8B and the 4B model."""
