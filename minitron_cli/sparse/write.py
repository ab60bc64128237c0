"""Write a sparse checkpoint and its masks in one pass over the parent's file. Knows no text and no model."""

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from minitron_cli import progress
from minitron_cli.checkpoint.reader import Buffer, Checkpoint, blocks
from minitron_cli.checkpoint.writer import MAX_SHARD_BYTES, Blank, TensorSpec, blank_checkpoint
from minitron_cli.prune.slicing import check_finite
from minitron_cli.prune.stream import BLOCK_BYTES, in_threads
from minitron_cli.sparse.layer_pass import check_continued
from minitron_cli.sparse.mask_file import MASKS, MaskFile, MaskSpec, MaskWriter, new_mask_file
from minitron_cli.sparse.metrics.magnitude import Magnitude
from minitron_cli.sparse.store import MadeMatrix, pruned

Made = Callable[[str], MadeMatrix]
"""Matrix with zeros by its stored name."""


def _nothing(name: str) -> MadeMatrix:
    """No matrix has zeros."""
    raise KeyError(name)


@dataclass(frozen=True)
class SparseCheckpoint(Checkpoint):
    """A parent's checkpoint that reads with zeros."""

    made: Made = _nothing
    sparse: frozenset[str] = frozenset()
    """Names of the matrices with zeros."""

    def read(self, name: str) -> Tensor:
        """One whole tensor, in its stored dtype."""
        return self.made(name).weight if name in self.sparse else super().read(name)

    def read_rows(self, name: str, start: int, stop: int, buffer: Buffer | None = None) -> Tensor:
        """Rows `start:stop` of dim 0."""
        if name in self.sparse:
            return self.made(name).weight[start:stop]
        return super().read_rows(name, start, stop, buffer)


def by_magnitude(parent: Checkpoint, specs: Mapping[str, MaskSpec], masks: MaskFile | None = None) -> Made:
    """Makes matrices sparse by the size of their weights alone, when they are asked for.

    What `masks`, the parent's, have pruned stays pruned.
    """

    def made(name: str) -> MadeMatrix:
        spec = specs[name]
        if masks and name in masks:
            return _by_magnitude(name, parent.read(name), spec, ~masks.read(name))
        if spec.pattern.group:  # by blocks that stay in the processor's cache
            parts = [_by_magnitude(name, block, spec) for _, block in blocks(parent, name, BLOCK_BYTES)]
            return MadeMatrix(torch.cat([part.mask for part in parts]), torch.cat([part.weight for part in parts]))
        return _by_magnitude(name, parent.read(name), spec)

    return made


def _by_magnitude(name: str, weight_OI: Tensor, spec: MaskSpec, lost_OI: Tensor | None = None) -> MadeMatrix:
    check_finite(name, weight_OI)
    mask_OI = Magnitude().sparse(weight_OI, None, spec.pattern, lost_OI).mask_OI
    check_continued(name, mask_OI, lost_OI)
    return MadeMatrix(mask_OI, pruned(weight_OI, mask_OI))


def write_sparse(view: SparseCheckpoint, masks: Mapping[str, MaskSpec], names: list[str], directory: Path) -> None:
    """Write the named tensors into an empty directory, and the masks of those that have any.

    A few threads each hold one matrix, or a block of another tensor.
    """
    specs = {name: TensorSpec(view.tensors[name].shape, view.tensors[name].torch_dtype) for name in names}
    total = sum(spec.size_bytes for spec in specs.values())
    with (
        progress.track("sparsify", total, "bytes") as step,
        blank_checkpoint(directory, specs, MAX_SHARD_BYTES) as blank,
        new_mask_file(directory / MASKS, masks) as mask_file,
    ):
        in_threads(lambda name: _write(view, name, blank, mask_file), _each(names), step)


def _each(names: list[str]) -> Generator[str, None, None]:
    yield from names


def _write(view: SparseCheckpoint, name: str, blank: Blank, masks: MaskWriter) -> int:
    """Write one tensor; its size in bytes."""
    if name in view.sparse:
        made = view.made(name)
        blank.fill(name, [made.weight])
        masks.put(name, made.mask)
        return made.weight.nbytes
    for start, block in blocks(view, name, BLOCK_BYTES):
        check_finite(name, block)
        info = view.tensors[name]
        row_bytes = info.size_bytes // info.shape[0] if info.shape else 0
        blank.write_at(name, start * row_bytes, block)
    return view.tensors[name].size_bytes
