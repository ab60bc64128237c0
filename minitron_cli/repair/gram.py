"""Sums of outer products over calibration tokens: what a least-squares fit and a rotation are computed from.

A pretrained model gives some tokens, such as the first of a text, inputs that are a hundred times as large as the
others'. One such token would outweigh ten thousand, so in a fit a token counts at most as much as one whose squared
input is `BOUND` times the median.
"""

# B sample, T token, D hidden, I input, O output, J some of the outputs, R token of any sample

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from minitron_cli import stopping
from minitron_cli.repair.held_out import HELD_OUT

BOUND = 10.0  # of a token's squared input in a fit, as a multiple of the median of its sample
ROWS = 256  # of G that are summed at a time, from the diagonal on: G is symmetric


def bounded(inputs_RI: Tensor, outputs_RO: Tensor) -> tuple[Tensor, Tensor]:
    """Inputs and wanted outputs, fp32, with each token of a larger squared input scaled down to the bound."""
    inputs_RI, outputs_RO = inputs_RI.float(), outputs_RO.float()
    squares_R = inputs_RI.square().sum(dim=-1, keepdim=True)
    bound = BOUND * squares_R.median() if len(squares_R) else squares_R.new_tensor(0.0)
    factors_R = torch.where((squares_R > bound) & (bound > 0), (bound / squares_R).sqrt(), 1.0)
    return inputs_RI * factors_R, outputs_RO * factors_R


def by_sample(samples_R: Tensor, *rows: Tensor) -> Iterator[tuple[Any, ...]]:
    """(number, its part of each of the rows) of every sample; `samples_R` numbers the sample of each row, ascending.

    What is summed or bounded so does not depend on the samples that were in one batch.
    """
    samples, counts = samples_R.unique_consecutive(return_counts=True)
    sizes = counts.tolist()
    return zip(samples.tolist(), *(part.split(sizes) for part in rows), strict=True)


@dataclass(frozen=True, eq=False)
class GramPair:
    """G = sum of a a^T and T = sum of t a^T over inputs a and wanted outputs t, fp32."""

    upper_II: Tensor
    """G on and above the diagonal; below it, nothing in particular."""
    outputs_OI: Tensor

    @property
    def inputs_II(self) -> Tensor:
        """G, in memory of its own."""
        return self.upper_II.triu() + self.upper_II.triu(1).T

    def add_(self, inputs_TI: Tensor, outputs_TO: Tensor) -> None:
        """Add tokens."""
        for start in range(0, inputs_TI.shape[1], ROWS):
            rows_TR = inputs_TI[:, start : start + ROWS]
            self.upper_II[start : start + ROWS, start:].addmm_(rows_TR.T, inputs_TI[:, start:])
        self.outputs_OI.addmm_(outputs_TO.T, inputs_TI)

    def of_outputs(self, outputs_J: Tensor) -> "GramPair":
        """The same sums for some of the outputs, given by index."""
        return GramPair(self.upper_II, self.outputs_OI[outputs_J])

    def __add__(self, other: "GramPair") -> "GramPair":
        return GramPair(self.upper_II + other.upper_II, self.outputs_OI + other.outputs_OI)


@dataclass(frozen=True, eq=False)
class SplitGramPair:
    """Sums over the samples to fit on, and over those that are held out to choose the ridge by."""

    fit: GramPair
    held_out: GramPair

    @classmethod
    def empty(cls, outputs: int, inputs: int, device: torch.device) -> "SplitGramPair":
        """Zeros for these numbers of outputs and inputs."""

        def zeros(rows: int) -> Tensor:
            return torch.zeros(rows, inputs, device=device)

        return cls(GramPair(zeros(inputs), zeros(outputs)), GramPair(zeros(inputs), zeros(outputs)))

    def add_(self, inputs_RI: Tensor, outputs_RO: Tensor, samples_R: Tensor) -> None:
        """Add tokens of any samples, one sample after the other; `samples_R` numbers the sample of each."""
        for sample, inputs_TI, outputs_TO in by_sample(samples_R, inputs_RI, outputs_RO):
            self.add_sample_(sample, inputs_TI, outputs_TO)

    def add_sample_(self, sample: int, inputs_TI: Tensor, outputs_TO: Tensor) -> None:
        """Add tokens of one sample, given by its number."""
        part = self.held_out if sample % HELD_OUT == HELD_OUT - 1 else self.fit
        part.add_(*bounded(inputs_TI, outputs_TO))

    @classmethod
    def of(cls, batches: Iterable[tuple[Tensor, Tensor]]) -> "SplitGramPair":
        """Sums over batches of (inputs [B, T, I], outputs [B, T, O])."""
        sums, samples = None, 0
        for inputs_BTI, outputs_BTO in batches:
            if sums is None:
                sums = cls.empty(outputs_BTO.shape[-1], inputs_BTI.shape[-1], inputs_BTI.device)
            outputs_BTO = outputs_BTO.to(inputs_BTI.device)
            # Sample by sample, so that the order of the sums, and with it their rounding, is that of any batch size.
            for inputs_TI, outputs_TO in zip(inputs_BTI, outputs_BTO, strict=True):
                stopping.raise_if_stopped()
                sums.add_sample_(samples, inputs_TI, outputs_TO)
                samples += 1
        assert sums is not None
        return sums


@dataclass(eq=False)
class NormMoments:
    """Sum of x x^T / mean(x^2) over the inputs x of one norm, fp32."""

    sum_DD: Tensor
    tokens: int = 0

    @classmethod
    def empty(cls, size: int, device: torch.device) -> "NormMoments":
        """Zeros for a norm over `size` channels."""
        return cls(torch.zeros(size, size, device=device))

    def add_(self, x_BTD: Tensor) -> None:
        """Add a batch of inputs."""
        for x_TD in x_BTD.float():
            # The clamp keeps a token of zeros at zero.
            unit_TD = x_TD * x_TD.square().mean(dim=-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny).rsqrt()
            self.sum_DD.addmm_(unit_TD.T, unit_TD)
            self.tokens += len(unit_TD)
