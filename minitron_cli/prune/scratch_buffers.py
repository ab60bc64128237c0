"""A block of weights as bits: which of its entries survive, and whether all of them are numbers."""

import math
import threading
from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor

from minitron_cli.errors import CheckpointError

INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by size: what moves fast in any dtype


class ScratchBuffers(threading.local):
    """Memory that each thread uses again for every block: two buffers in turn, for what comes in and what goes out."""

    def __init__(self) -> None:
        self._buffers = deque([torch.empty(0, dtype=torch.uint8)] * 2)

    def take(self, size_bytes: int) -> Tensor:
        """So many bytes. What was taken before stays as it is, what was taken before that does not."""
        self._buffers.rotate()
        if self._buffers[0].numel() < size_bytes:  # `len` of a tensor is ten times as slow
            self._buffers[0] = torch.empty(size_bytes, dtype=torch.uint8)
        return self._buffers[0][:size_bytes]


def select(block: Tensor, survivors: Sequence[Tensor | None], spare: ScratchBuffers | None = None) -> Tensor:
    """The entries at these positions of each dim; None takes them all. Bits move and nothing else.

    With `spare` memory the block, if it is in there as well, may be overwritten.
    """
    bits = block.view(INTEGERS[block.itemsize])
    for dim, index in enumerate(survivors):
        if index is not None:
            bits = _take(bits, dim, index.to(block.device), spare)
    return bits.view(block.dtype)


def _take(bits: Tensor, dim: int, index: Tensor, spare: ScratchBuffers | None) -> Tensor:
    shape = [index.numel() if d == dim else size for d, size in enumerate(bits.shape)]
    out = None
    if spare:
        out = spare.take(math.prod(shape) * bits.itemsize).view(bits.dtype).view(shape)
    if dim == 0:  # whole rows
        return torch.index_select(bits, 0, index, out=out)
    # A repeated index costs no memory, and this is three times as fast as `index_select`.
    along = index.view([-1 if d == dim else 1 for d in range(bits.ndim)])
    return torch.gather(bits, dim, along.expand(shape), out=out)


def is_finite(block: Tensor) -> bool:
    """Whether no entry is NaN or infinite."""
    if not block.is_floating_point():
        return True
    numbers = block.float() if block.itemsize == 1 else block
    # A sum that is a number has only numbers in it, and takes a tenth of the time; it may overflow, though.
    return math.isfinite(numbers.sum()) or bool(numbers.isfinite().all())


def check_finite(name: str, block: Tensor) -> None:
    """CheckpointError if a weight of the parent is NaN or infinite."""
    if not is_finite(block):
        raise CheckpointError(f"tensor {name!r} holds NaN or infinity: the checkpoint is damaged; download it again")
