"""Second moments over calibration tokens: of the inputs of one norm, or of what one matrix reads and should give."""

# B sample, T token, D hidden, I input, O output

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

HELD_OUT = 4  # of so many samples, one is left out to judge by


@dataclass(frozen=True, eq=False)
class Pairs:
    """Sums of a a^T and t a^T of inputs a and the outputs t that are wanted, fp32."""

    inputs_II: Tensor
    outputs_OI: Tensor

    def add_(self, inputs_TI: Tensor, outputs_TO: Tensor) -> None:
        self.inputs_II.addmm_(inputs_TI.T, inputs_TI)
        self.outputs_OI.addmm_(outputs_TO.T, inputs_TI)

    def of(self, outputs_J: Tensor) -> "Pairs":
        """Of some outputs."""
        return Pairs(self.inputs_II, self.outputs_OI[outputs_J])

    def __add__(self, other: "Pairs") -> "Pairs":
        return Pairs(self.inputs_II + other.inputs_II, self.outputs_OI + other.outputs_OI)


@dataclass(frozen=True, eq=False)
class Evidence:
    """Pairs in two parts: one to solve with and one to judge by."""

    fit: Pairs
    held: Pairs

    @classmethod
    def empty(cls, outputs: int, inputs: int, device: torch.device) -> "Evidence":
        def zeros(rows: int) -> Tensor:
            return torch.zeros(rows, inputs, device=device)

        return cls(Pairs(zeros(inputs), zeros(outputs)), Pairs(zeros(inputs), zeros(outputs)))

    def add_(self, inputs_RI: Tensor, outputs_RO: Tensor, samples_R: Tensor) -> None:
        """Add tokens of any samples, by their numbers."""
        is_held_R = samples_R % HELD_OUT == HELD_OUT - 1
        for part, of_part_R in ((self.fit, ~is_held_R), (self.held, is_held_R)):
            part.add_(inputs_RI[of_part_R].float(), outputs_RO[of_part_R].float())

    @classmethod
    def of(cls, batches: Iterable[tuple[Tensor, Tensor]]) -> "Evidence":
        """Of batches of inputs [B, T, I] and outputs [B, T, O]. Sample by sample: batch sizes leave no trace."""
        evidence, samples = None, 0
        for inputs_BTI, outputs_BTO in batches:
            if evidence is None:
                evidence = cls.empty(outputs_BTO.shape[-1], inputs_BTI.shape[-1], inputs_BTI.device)
            outputs_BTO = outputs_BTO.to(inputs_BTI.device).float()
            for inputs_TI, outputs_TO in zip(inputs_BTI.float(), outputs_BTO, strict=True):
                samples += 1
                (evidence.fit if samples % HELD_OUT else evidence.held).add_(inputs_TI, outputs_TO)
        assert evidence is not None
        return evidence


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
