"""Positions of a batch that are scored, the token each has to predict, and the document each belongs to."""

# B sequence, T token, N scored token

from typing import NamedTuple

import torch
from torch import Tensor

from minitron_cli.data.batches import Batch, is_predicted


class Targets(NamedTuple):
    """Scored positions of a batch and their labels."""

    rows_N: Tensor
    """Indices of the scored positions in the flattened batch."""
    labels_N: Tensor
    """Token that follows each of them."""

    def in_blocks(self, length: int) -> list[int]:
        """Number of scored positions of each block of `length` tokens that has any."""
        _, counts = (self.rows_N // length).unique_consecutive(return_counts=True)
        found: list[int] = counts.tolist()
        return found


NOTHING = Targets(torch.empty(0, dtype=torch.long), torch.empty(0, dtype=torch.long))
"""No scored token: for a process without text of its own that takes part because others need its rows."""


def targets(batch: Batch) -> Targets:
    """Scored positions: the next token is in the same block and document, and in the loss mask."""
    is_scored_BT = torch.zeros_like(batch.input_ids_BT, dtype=torch.bool)
    is_scored_BT[:, :-1] = is_predicted(batch.position_ids_BT, batch.loss_mask_BT)
    rows_N = is_scored_BT.flatten().nonzero()[:, 0]
    return Targets(rows_N, batch.input_ids_BT.flatten()[rows_N + 1])


def documents(batch: Batch) -> Tensor:
    """Number of each token's document within its sequence, from 1, [B, T]."""
    return (batch.position_ids_BT == 0).cumsum(1)
