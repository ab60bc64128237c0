"""Second moments: sums of a a^T over tokens, of the inputs of one matrix or of one norm."""

# B sample, T token, C input channel, D hidden

from dataclasses import dataclass

import torch
from torch import Tensor

HELD_OUT = 4  # of so many samples, one is left out to judge by


@dataclass(frozen=True, eq=False)
class Gram:
    """Of a matrix's inputs, fp32, in two parts: one to solve with and one to judge by."""

    fit_CC: Tensor
    held_CC: Tensor

    @classmethod
    def empty(cls, size: int, device: torch.device) -> "Gram":
        return cls(torch.zeros(size, size, device=device), torch.zeros(size, size, device=device))

    def add_(self, inputs_BTC: Tensor, first: int) -> None:
        """Add a batch whose first sample has this number. Sample by sample: batch sizes leave no trace."""
        for b, inputs_TC in enumerate(inputs_BTC.float(), start=first):
            into_CC = self.held_CC if b % HELD_OUT == HELD_OUT - 1 else self.fit_CC
            into_CC.addmm_(inputs_TC.T, inputs_TC)


@dataclass(eq=False)
class NormMoments:
    """Of a norm's inputs, each token's divided by its mean square; fp32."""

    sum_DD: Tensor
    tokens: int = 0

    @classmethod
    def empty(cls, size: int, device: torch.device) -> "NormMoments":
        return cls(torch.zeros(size, size, device=device))

    def add_(self, x_BTD: Tensor) -> None:
        for x_TD in x_BTD.float():
            # a token of zeros stays zero
            unit_TD = x_TD * x_TD.square().mean(dim=-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny).rsqrt()
            self.sum_DD.addmm_(unit_TD.T, unit_TD)
            self.tokens += len(unit_TD)
