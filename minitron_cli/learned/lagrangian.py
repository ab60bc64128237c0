"""Lagrangian of a target: the price of every row of gates that is not open as far as it should be.

With g the expected share of open gates of a row less its target, sum over rows of lambda g + phi g^2. Gates descend on
it and the multipliers ascend, so that each grows until its row meets the target (Xia et al. 2023, eq. 2; Wang et al.
2020).
"""

import torch
from torch import Tensor, nn

from minitron_cli.learned.gates import Gates

START = 10.0
"""phi before the first step. The papers start at 0; then lambda has to grow against whatever the loss asks, gates pass
the target meanwhile, all at the same speed, and swing back: which of them are open is chance."""


class Lagrangian(nn.Module):
    """Two multipliers for every row of gates."""

    def __init__(self, gates: Gates) -> None:
        super().__init__()
        rows = {axis: shares.detach() for axis, shares in gates.open_shares().items()}
        self.linear = nn.ParameterDict({axis: nn.Parameter(torch.zeros_like(row)) for axis, row in rows.items()})
        self.square = nn.ParameterDict({axis: nn.Parameter(torch.full_like(row, START)) for axis, row in rows.items()})

    def forward(self, gates: Gates, progress: float) -> Tensor:
        """The price, where targets have come a share `progress` of their way from all open."""
        return torch.stack(
            [
                (self.linear[axis] * gap + self.square[axis] * gap.square()).sum()
                for axis, gap in gaps(gates, progress).items()
            ]
        ).sum()

    @torch.no_grad()
    def ascend_(self, rate: float) -> None:
        """One step along the gradient that the price has left."""
        for parameter in self.parameters():
            assert parameter.grad is not None
            parameter.add_(parameter.grad, alpha=rate)


def gaps(gates: Gates, progress: float = 1.0) -> dict[str, Tensor]:
    """Expected share of open gates less its target, of every row of every axis."""
    return {
        axis: shares - (1 - progress * (1 - gates.targets[axis].share)) for axis, shares in gates.open_shares().items()
    }
