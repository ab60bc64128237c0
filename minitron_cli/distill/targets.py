"""What each position of a batch has to predict, which positions count, and which are of one document."""

# B sequence, T token, N counted token

from typing import NamedTuple

import torch
from torch import Tensor

from minitron_cli.data.batches import Batch


class Targets(NamedTuple):
    rows_N: Tensor
    """The counted positions, as indices into the flattened batch."""
    labels_N: Tensor
    """The token that follows each of them."""


def targets(batch: Batch) -> Targets:
    """A position counts if the next token does, is in the same block and of the same document."""
    loss_mask_BT = torch.zeros_like(batch.input_ids_BT, dtype=torch.bool)
    loss_mask_BT[:, :-1] = batch.position_ids_BT[:, 1:] != 0  # positions restart at each document
    if batch.loss_mask_BT is not None:
        loss_mask_BT[:, :-1] &= batch.loss_mask_BT[:, 1:]
    rows_N = loss_mask_BT.flatten().nonzero()[:, 0]
    return Targets(rows_N, batch.input_ids_BT.flatten()[rows_N + 1])


def documents(batch: Batch) -> Tensor:
    """The number of each token's document in its sequence, [B, T]."""
    return (batch.position_ids_BT == 0).cumsum(1)
