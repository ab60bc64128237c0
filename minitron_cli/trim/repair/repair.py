"""What is done to a cut's tensors beside selecting entries."""

# D hidden, K kept channels or directions

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from minitron_cli.checkpoint.reader import Checkpoint
from minitron_cli.model.shape import Shape


@dataclass(frozen=True, eq=False)
class Repair:
    """All of it by the parent's tensor names. With nothing in it, the cut is a plain one."""

    basis_DK: Tensor | None = None
    """The residual stream is cut to these directions, orthonormal and fp32, instead of to channels."""
    gain_D: Mapping[str, Tensor] = field(default_factory=dict)
    """Norm -> what it multiplies by, where that goes into the matrices that read the norm; 1 is left of it."""
    readings: Checkpoint | None = None
    """Norm -> [D, K], fp32: what it let through, out of what is left of the stream."""
    scales: Mapping[str, float] = field(default_factory=dict)
    """Norm -> what its output is multiplied by."""
    solved: Checkpoint | None = None
    """Matrices whose kept columns were solved for; all of their rows."""

    def reading(self, norm: str) -> Tensor | None:
        """[D, K]: what a matrix that reads a norm is multiplied by; None where the norm is not folded into it."""
        if norm not in self.gain_D:
            return None
        through_DK = self.readings.read(norm) if self.readings and norm in self.readings.tensors else self.basis_DK
        assert through_DK is not None
        return self.gain_D[norm][:, None] * through_DK


PLAIN = Repair()


def gains(shape: Shape, norms: Iterable[str], read: Callable[[str], Tensor]) -> dict[str, Tensor]:
    """Norm -> what it multiplies by, fp32, for templates of norms; `read` gives the parent's tensors."""
    offset = shape.family.norm_offset
    return {name: read(name).float().cpu() + offset for template in norms for name in shape.names(template)}
