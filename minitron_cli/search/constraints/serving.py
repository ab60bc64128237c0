"""Constraint on the programs that can serve a child."""

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from minitron_cli.figures import Figure
from minitron_cli.search.constraints.base import Counted, Limits

if TYPE_CHECKING:
    from minitron_cli.model.shape import Shape

Program = Literal["transformers", "vLLM", "llama.cpp"]


class Serving(Counted):
    """Every named program can serve the child, split over a number of devices."""

    figure: ClassVar[Figure] = Figure("programs that cannot run it", style="count", better="lower")
    is_compared: ClassVar[bool] = False

    kind: Literal["serving"] = "serving"
    programs: tuple[Program, ...] = ("transformers", "vLLM")
    """Programs that must not fail (docs/serving.md)."""
    tensor_parallel: int = Field(1, ge=1)
    """Devices over which heads, groups and neurons must divide evenly."""

    def cost(self, shape: "Shape") -> float:
        """Number of programs that fail, plus one if the shape does not divide over the devices."""
        from minitron_cli.model.serving import fails_on, splits_over

        return len(fails_on(shape) & set(self.programs)) + (not splits_over(shape, self.tensor_parallel))

    def limits(self, whole: float) -> Limits:
        return Limits(0, 0)

    @property
    def quantity(self) -> str:
        over = f" over {self.tensor_parallel} devices" if self.tensor_parallel > 1 else ""
        return f"{self.figure.title} ({', '.join(self.programs)}{over})"

    def demand(self, whole: float) -> str:
        over = f", over {self.tensor_parallel} devices" if self.tensor_parallel > 1 else ""
        return f"{' and '.join(self.programs)} must run it{over}"
