"""Apply a tensor map to a block of weights: the one place where the numbers of a child are made.

Entries are selected as bits, so that a kept weight is the parent's own. Products with directions are taken in fp32 and
stored in the tensor's dtype.
"""

# R row of the parent's tensor, D hidden of the parent, K kept row, channel or direction

import math
import threading
from collections import deque
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from minitron_cli.errors import CheckpointError
from minitron_cli.prune.tensor_map import MergedRows, NormMap, Rescale, TensorMap

INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integer of each size in bytes: selecting integers is fast whatever the weights' dtype."""


class ScratchBuffers(threading.local):
    """Memory that each thread uses again for every block: two buffers in turn, for what comes in and what goes out."""

    def __init__(self) -> None:
        self._buffers = deque([torch.empty(0, dtype=torch.uint8)] * 2)

    def take(self, size_bytes: int) -> Tensor:
        """Bytes to write to, uint8 [size_bytes]. They overwrite what the last call but one returned."""
        self._buffers.rotate()
        if self._buffers[0].numel() < size_bytes:  # `len` of a tensor is ten times as slow
            self._buffers[0] = torch.empty(size_bytes, dtype=torch.uint8)
        return self._buffers[0][:size_bytes]


def prune_tensor(tensor_map: TensorMap, blocks: Iterable[tuple[int, Tensor]]) -> Tensor:
    """The child's whole tensor from all blocks (first row, rows) of the source.

    Where rows are mixed, a block and the fp32 result are all that is held; otherwise there must be one block.
    """
    if tensor_map.left_DK is None:
        ((_, whole),) = blocks
        return prune_rows(tensor_map, whole)
    total = dtype = None
    for start, block in blocks:
        inner = _multiplied(select(block, tensor_map.indices), tensor_map.right_DK)
        # Rows are summed over, so each block adds its share; a matrix of all rows is never in memory.
        part = tensor_map.left_DK[start : start + len(block)].to(block.device).T @ inner.float()
        total, dtype = part if total is None else total.add_(part), block.dtype
    assert total is not None
    return _rescaled(total.to(dtype), tensor_map.rescale)


def prune_rows(tensor_map: TensorMap, block: Tensor, scratch: ScratchBuffers | None = None) -> Tensor:
    """The child's part of a block of rows, of which the map gives positions (`TensorMap.of_rows`).

    With `scratch` the result is in its memory, and a block that is there too may be overwritten.
    """
    indices = tensor_map.indices
    if tensor_map.norm is not None:
        return _rescaled(_norm_weight(block, tensor_map.norm, indices, tensor_map.shape), tensor_map.rescale)
    kept = select(block, indices, scratch) if tensor_map.merged is None else _merged(block, indices, tensor_map.merged)
    return _rescaled(_multiplied(kept, tensor_map.right_DK), tensor_map.rescale)


def _norm_weight(weight_R: Tensor, norm: NormMap, indices: Sequence[Tensor | None], shape: Sequence[int]) -> Tensor:
    """Stored weight of a norm, [K]: gain less offset."""
    offset = norm.offset
    if norm.is_folded:
        weight_R = weight_R.new_full(tuple(shape), 1 - offset)
    elif norm.basis_DK is not None:
        # diag(Q^T diag(gain) Q): in another basis a norm can keep only the diagonal of its gain.
        gain_K = (weight_R.float() + offset) @ norm.basis_DK.to(weight_R.device).square()
        weight_R = (gain_K - offset).to(weight_R.dtype)
    else:
        weight_R = select(weight_R, indices)
    if norm.scale is not None:
        weight_R = ((weight_R.float() + offset) * norm.scale - offset).to(weight_R.dtype)
    return weight_R


def _merged(block: Tensor, indices: Sequence[Tensor | None], merged: MergedRows) -> Tensor:
    """Kept rows, each with its share of the pruned row that is merged into it."""
    rows, others = (select(block, (index, *indices[1:])) for index in (indices[0], merged.other_K))
    own, other = (tensor.to(torch.promote_types(rows.dtype, torch.float32)) for tensor in (rows, others))
    return (own + merged.factor * (own - other)).to(rows.dtype)


def _rescaled(block: Tensor, rescale: Rescale | None) -> Tensor:
    if rescale is None:
        return block
    exact = block.to(torch.promote_types(block.dtype, torch.float32))
    return ((exact + rescale.offset) * rescale.factor - rescale.offset).to(block.dtype)


def _multiplied(block: Tensor, right_DK: Tensor | None) -> Tensor:
    """A block times a matrix, from the right, in fp32."""
    return block if right_DK is None else (block.float() @ right_DK.to(block.device)).to(block.dtype)


# Selecting bits -----------------------------------------------------------------------------------------------------


def select(block: Tensor, indices: Sequence[Tensor | None], scratch: ScratchBuffers | None = None) -> Tensor:
    """The entries at these positions of each dim; None keeps the whole dim. Bits are moved, no number is changed.

    With `scratch` the result is in its memory, and a block that is there too may be overwritten.
    """
    bits = block.view(INTEGERS[block.itemsize])
    for dim, index in enumerate(indices):
        if index is not None:
            bits = _take(bits, dim, index.to(block.device), scratch)
    return bits.view(block.dtype)


def _take(bits: Tensor, dim: int, index: Tensor, scratch: ScratchBuffers | None) -> Tensor:
    shape = [index.numel() if d == dim else size for d, size in enumerate(bits.shape)]
    out = None
    if scratch:
        out = scratch.take(math.prod(shape) * bits.itemsize).view(bits.dtype).view(shape)
    if dim == 0:  # whole rows
        return torch.index_select(bits, 0, index, out=out)
    # An expanded index takes no memory, and gather with it is three times as fast as `index_select` along columns.
    along = index.view([-1 if d == dim else 1 for d in range(bits.ndim)])
    return torch.gather(bits, dim, along.expand(shape), out=out)


def is_finite(block: Tensor) -> bool:
    """Whether no entry is NaN or infinite."""
    if not block.is_floating_point():
        return True
    numbers = block.float() if block.itemsize == 1 else block
    # A finite sum implies finite entries and is 10x faster to compute; the fallback is for sums that overflow.
    return math.isfinite(numbers.sum()) or bool(numbers.isfinite().all())


def check_finite(name: str, block: Tensor) -> None:
    """Raise CheckpointError if a weight of the parent is NaN or infinite."""
    if not is_finite(block):
        raise CheckpointError(f"tensor {name!r} holds NaN or infinity: the checkpoint is damaged; download it again")
