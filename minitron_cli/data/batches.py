"""Which blocks a step sees, and the blocks as tensors.

The order is a pure function of the seed and the position, so that a resumed run needs to know nothing else.
"""

# B batch, T token

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b

import torch
from torch import Tensor

from minitron_cli.data.pack import Blocks


@dataclass(frozen=True)
class Batch:
    """Blocks side by side. There is no attention mask: with `position_ids` alone, documents do not see each other."""

    input_ids_BT: Tensor
    position_ids_BT: Tensor
    sample_ids: tuple[int, ...]
    """The blocks' indices."""
    loss_mask_BT: Tensor | None = None
    """Which tokens are scored or trained on, of chats and completions the answers; None: all."""


def sample_ids(seed: int, first: int, count: int, total: int) -> list[int]:
    """The blocks at global positions first .. first + count of an endless run over `total` blocks.

    Each epoch visits every block once, in an order of its own.
    """
    assert total > 0
    ids: list[int] = []
    while len(ids) < count:
        epoch, start = divmod(first + len(ids), total)
        ids += _epoch(seed, epoch, total)[start : start + count - len(ids)].tolist()
    return ids


def rank_slice(ids: Sequence[int], rank: int, processes: int) -> list[int]:
    """The samples that one of `processes` ranks computes; together the ranks compute each sample once."""
    return list(ids[rank::processes])


def batch(blocks: Blocks, ids: Sequence[int]) -> Batch:
    """The blocks `ids`, in this order."""
    return Batch(
        torch.stack([blocks.tokens(i) for i in ids]),
        torch.stack([blocks.positions(i) for i in ids]),
        tuple(ids),
        loss_mask_of(blocks, ids),
    )


def loss_mask_of(blocks: Blocks, ids: Sequence[int]) -> Tensor | None:
    """Which tokens of the blocks count, bool [B, T]; None if all do."""
    masks = [mask for i in ids if (mask := blocks.loss_mask(i)) is not None]
    return torch.stack(masks) if masks else None


@lru_cache(maxsize=2)  # a batch may span two epochs
def _epoch(seed: int, epoch: int, total: int) -> Tensor:
    digest = blake2b(f"{seed} {epoch}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little"))
    return torch.randperm(total, generator=generator)
