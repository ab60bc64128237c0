"""Which programs can run a child."""

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from minitron_cli.search.constraints.base import Counted, Limits

if TYPE_CHECKING:
    from minitron_cli.model.shape import Shape

Program = Literal["transformers", "vLLM", "llama.cpp"]


class Serving(Counted):
    """Every named program runs the child, shared by so many devices."""

    kind: Literal["serving"] = "serving"
    programs: tuple[Program, ...] = ("transformers", "vLLM")
    """Those that must not fail (docs/serving.md)."""
    tensor_parallel: int = Field(1, ge=1)
    """Devices among which heads, groups and neurons divide."""

    def cost(self, shape: "Shape") -> float:
        """How many of them cannot."""
        from minitron_cli.model.serving import fails_on, splits_over

        return len(fails_on(shape) & set(self.programs)) + (not splits_over(shape, self.tensor_parallel))

    def limits(self, whole: float) -> Limits:
        return Limits(0, 0)

    @property
    def title(self) -> str:
        over = f" over {self.tensor_parallel} devices" if self.tensor_parallel > 1 else ""
        return f"programs that cannot run it ({', '.join(self.programs)}{over})"

    def format(self, value: float) -> str:
        return f"{value:.0f}"

    def says(self, whole: float) -> str:
        over = f", over {self.tensor_parallel} devices" if self.tensor_parallel > 1 else ""
        return f"{' and '.join(self.programs)} must run it{over}"
