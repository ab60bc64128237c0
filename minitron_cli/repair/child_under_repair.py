"""A child as a layer-by-layer fit sees it: what of the parent it keeps, and how each of its parts is fitted."""

# B batch, T token, R token of any sample, D hidden of the parent, K of the child, I input

from collections.abc import Collection
from typing import Protocol

from torch import Tensor

from minitron_cli.repair.gram import SplitGramPair


class ChildUnderRepair(Protocol):
    """A child as far as it has been fitted. Tensors go by the parent's names unless a method says otherwise."""

    fits_norms: bool
    """Whether what is read through norms is fitted."""
    fits_writers: bool
    """Whether matrices that write to the stream are fitted."""

    def read(self, name: str, /) -> Tensor:
        """Tensor of the child, by the child's name."""
        ...

    def kept_stream(self, x_BTD: Tensor, /) -> Tensor:
        """Part of the parent's residual stream that the child keeps, [..., K]."""
        ...

    def kept_inputs(self, name: str, inputs_RI: Tensor, /) -> Tensor:
        """Inputs of a parent's matrix that the child keeps."""
        ...

    def has_pruned_inputs(self, name: str, /) -> bool:
        """Whether the child has a matrix, with fewer inputs than the parent's."""
        ...

    def fits_readout(self, norm: str, /) -> bool:
        """Whether a norm's gain is folded into its readers, which are then fitted together."""
        ...

    def fit_norm(self, norm: str, sums: SplitGramPair, /) -> Collection[str]:
        """Fit a folded norm's readout of the parent's output from the child's; the child's names of changed tensors."""
        ...

    def fit_writer(self, name: str, sums: SplitGramPair, /) -> Collection[str]:
        """Fit a matrix that writes to the stream to its wanted output; the child's names of changed tensors."""
        ...

    def fit_gain(self, norm: str, sums: SplitGramPair, /) -> None:
        """Fit the weight of a norm that is not folded to the kept part of the parent's output."""
        ...
