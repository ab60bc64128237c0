"""Repairs of a pruned model, as a plan carries them: everything that is done to weights besides selecting entries."""

# D hidden of the parent, K kept channels or directions

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from minitron_cli.checkpoint.reader import Checkpoint
from minitron_cli.model.shape import Shape


@dataclass(frozen=True, eq=False)
class Repair:
    """Changes to the child's weights. Mappings and checkpoints go by the parent's tensor names; empty: none."""

    basis_DK: Tensor | None = None
    """Directions of the residual stream that are kept instead of channels: orthonormal columns, fp32."""
    channels_DK: Tensor | None = None
    """Unit vectors of the kept channels, for norms that are folded while channels are kept."""
    gain_D: Mapping[str, Tensor] = field(default_factory=dict)
    """Gain of each norm that is folded into its readers; the norm's own gain becomes 1."""
    folded_readout: Checkpoint | None = None
    """Folded norm -> fitted readout [D, K], fp32: maps the child's norm output, without a gain, to the parent's."""
    scales: Mapping[str, float] = field(default_factory=dict)
    """Norm -> factor of its output."""
    fitted: Checkpoint | None = None
    """Tensors that were fitted to calibration text, with the child's shapes and dtypes."""

    def readout_DK(self, norm: str) -> Tensor | None:
        """Matrix that maps a norm's readers to the child's hidden dim; None where the norm is not folded into them."""
        if norm not in self.gain_D:
            return None
        if self.folded_readout is not None and norm in self.folded_readout.tensors:
            return self.folded_readout.read(norm)
        return self.gain_D[norm][:, None] * self.kept_DK

    @property
    def kept_DK(self) -> Tensor:
        """Kept part of the residual stream as orthonormal columns."""
        kept_DK = self.channels_DK if self.basis_DK is None else self.basis_DK
        assert kept_DK is not None
        return kept_DK

    def has_fitted(self, name: str) -> bool:
        """Whether a tensor was fitted, so that nothing of it is taken from the parent."""
        return self.fitted is not None and name in self.fitted.tensors


NO_REPAIR = Repair()


def norm_gains(shape: Shape, norms: Iterable[str], read: Callable[[str], Tensor]) -> dict[str, Tensor]:
    """Gain [D] of every norm of these templates, fp32 on the CPU; `read` returns a tensor of the parent."""
    offset = shape.family.norm_offset
    return {name: read(name).float().cpu() + offset for template in norms for name in shape.names(template)}
