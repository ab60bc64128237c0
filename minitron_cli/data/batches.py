"""Blocks of a step, as tensors.

Their order is a pure function of the seed and the position, so a resumed run needs no other state.
"""

# B batch, T token

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b

import torch
from torch import Tensor

from minitron_cli.data.pack import Blocks


@dataclass(frozen=True)
class Batch:
    """Blocks side by side. Without an attention mask, `position_ids` alone keep the documents of a block apart, in
    attention: a convolution or a scan does not read them."""

    input_ids_BT: Tensor
    position_ids_BT: Tensor
    sample_ids: tuple[int, ...]
    """Indices of the blocks."""
    loss_mask_BT: Tensor | None = None
    """Whether each token is scored and trained on, bool [B, T]: in chats and completions the answers. None: all."""


def training_ids(seed: int, first: int, count: int, total: int) -> list[int]:
    """Indices of the blocks at positions first .. first + count of the endless sequence that a training reads.

    Each epoch visits every one of the `total` blocks once, in its own order. In the first one the blocks of
    `calibration_ids` come last, so that a short training learns from text on which nothing was measured or fitted.
    """
    assert total > 0
    ids: list[int] = []
    while len(ids) < count:
        epoch, start = divmod(first + len(ids), total)
        stop = min(start + count - len(ids), total)
        ids += _epoch(seed, epoch, total)[total - stop : total - start].flip(0).tolist()
    return ids


def calibration_ids(seed: int, count: int, total: int) -> list[int]:
    """Indices of `count` of `total` blocks to measure or fit on. Those of a smaller count are the first of them."""
    assert 0 < count <= total
    return _epoch(seed, 0, total)[:count].tolist()


def rank_slice(ids: Sequence[int], rank: int, processes: int) -> list[int]:
    """Samples of one of `processes` ranks; together the ranks have each sample once."""
    return list(ids[rank::processes])


def evenly_spaced(total: int, count: int | None) -> list[int]:
    """Indices of `count` of `total` blocks (None: all), evenly spaced, because neighbors may belong to one document."""
    count = total if count is None else min(count, total)
    return [i * total // count for i in range(count)]


@dataclass(frozen=True)
class Batches:
    """The blocks `ids` in batches of at most `size`, in this order; every iteration reads them again."""

    blocks: Blocks
    ids: Sequence[int]
    size: int

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, len(self.ids), self.size):
            yield batch(self.blocks, self.ids[start : start + self.size])


def batch(blocks: Blocks, ids: Sequence[int]) -> Batch:
    """Batch of the blocks `ids`, in this order."""
    return Batch(
        torch.stack([blocks.tokens(i) for i in ids]),
        torch.stack([blocks.positions(i) for i in ids]),
        tuple(ids),
        loss_mask_of(blocks, ids),
    )


def is_predicted(position_ids_BT: Tensor, loss_mask_BT: Tensor | None) -> Tensor:
    """Whether each token but the first of a block is predicted from those before it, bool [B, T - 1].

    It is if its document does not start with it, since positions restart at each document, and if the loss mask has it.
    """
    continues_BT = position_ids_BT[:, 1:] != 0
    return continues_BT if loss_mask_BT is None else continues_BT & loss_mask_BT[:, 1:]


def loss_mask_of(blocks: Blocks, ids: Sequence[int]) -> Tensor | None:
    """Loss mask of the blocks, bool [B, T]; None if all tokens are scored."""
    masks = [blocks.loss_mask(i) for i in ids]
    if all(mask_T is None for mask_T in masks):
        return None
    every_T = torch.ones(blocks.sequence_length, dtype=torch.bool)
    return torch.stack([every_T if mask_T is None else mask_T for mask_T in masks])


@lru_cache(maxsize=2)  # a batch may span two epochs
def _epoch(seed: int, epoch: int, total: int) -> Tensor:
    digest = blake2b(f"{seed} {epoch}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little"))
    return torch.randperm(total, generator=generator)
