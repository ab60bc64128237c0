"""A block of weights as bits: which of its entries survive, and whether all of them are numbers."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from minitron_cli.errors import CheckpointError

INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by size: what moves fast in any dtype


def select(block: Tensor, survivors: Sequence[Tensor | None]) -> Tensor:
    """The entries at these positions of each dim; None takes them all. Bits move and nothing else."""
    bits = block.view(INTEGERS[block.itemsize])
    for dim, index in enumerate(survivors):
        if index is not None:
            bits = _take(bits, dim, index.to(block.device))
    return bits.view(block.dtype)


def _take(bits: Tensor, dim: int, index: Tensor) -> Tensor:
    if dim == 0:  # whole rows
        return bits.index_select(0, index)
    # A repeated index costs no memory, and this is three times as fast as `index_select`.
    shape = [len(index) if d == dim else size for d, size in enumerate(bits.shape)]
    along = index.view([-1 if d == dim else 1 for d in range(bits.ndim)])
    return bits.gather(dim, along.expand(shape))


def check_finite(name: str, block: Tensor) -> None:
    """CheckpointError if a weight is NaN or infinite."""
    if not block.is_floating_point():
        return
    numbers = block.float() if block.itemsize == 1 else block
    # A sum that is a number has only numbers in it, and takes a tenth of the time; it may overflow, though.
    if not math.isfinite(numbers.sum()) and not numbers.isfinite().all():
        raise CheckpointError(f"tensor {name!r} holds NaN or infinity: the checkpoint is damaged; download it again")
