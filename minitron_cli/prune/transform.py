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
    channels_DK: Tensor | None = None
    """Unit vectors of the channels that are kept, where norms are folded and there is no basis."""
    gain_D: Mapping[str, Tensor] = field(default_factory=dict)
    """Norm -> what it multiplies by, where that goes into the matrices that read the norm; 1 is left of it."""
    readings: Checkpoint | None = None
    """Norm of `gain_D` -> [D, K], fp32: what it gave, out of what it gives when 1 is left of it."""
    scales: Mapping[str, float] = field(default_factory=dict)
    """Norm -> what its output is multiplied by."""
    solved: Checkpoint | None = None
    """Tensors that were solved for, as the child stores them."""

    def reading(self, norm: str) -> Tensor | None:
        """[D, K]: what a matrix that reads a norm is multiplied by; None where the norm is not folded into it."""
        if norm not in self.gain_D:
            return None
        if self.readings and norm in self.readings.tensors:
            return self.readings.read(norm)
        return self.gain_D[norm][:, None] * self.kept_DK

    @property
    def kept_DK(self) -> Tensor:
        """What is left of the residual stream, orthonormal."""
        kept_DK = self.channels_DK if self.basis_DK is None else self.basis_DK
        assert kept_DK is not None
        return kept_DK

    def has_solved(self, name: str) -> bool:
        return self.solved is not None and name in self.solved.tensors


PLAIN = Repair()


def gains(shape: Shape, norms: Iterable[str], read: Callable[[str], Tensor]) -> dict[str, Tensor]:
    """Norm -> what it multiplies by, fp32, for templates of norms; `read` gives the parent's tensors."""
    offset = shape.family.norm_offset
    return {name: read(name).float().cpu() + offset for template in norms for name in shape.names(template)}
