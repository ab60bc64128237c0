"""Write a sparse checkpoint and its masks in one pass over the parent's file. Knows no text and no model."""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from minitron_cli import progress
from minitron_cli.checkpoint.reader import Checkpoint, blocks
from minitron_cli.checkpoint.safetensors_file import Buffer
from minitron_cli.checkpoint.writer import Blank, TensorSpec, blank_like
from minitron_cli.prune.slicing import check_finite
from minitron_cli.prune.stream import BLOCK_BYTES, in_threads
from minitron_cli.sparse.layer_pass import check_continued
from minitron_cli.sparse.mask_file import MASKS, MaskFile, MaskSpec, MaskWriter, new_mask_file, pack
from minitron_cli.sparse.metrics.magnitude import Magnitude
from minitron_cli.sparse.store import MadeMatrix, prune_

PART_BYTES = 1 << 20
"""Of a matrix that is pruned in parts, which stay in the processor's cache."""

Made = Callable[[str], Iterable[MadeMatrix]]
"""Matrix with zeros by its stored name: whole, or in parts of whole rows whose masks are whole bytes."""


def _nothing(name: str) -> Iterable[MadeMatrix]:
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
        if name not in self.sparse:
            return super().read(name)
        parts = [part.weight for part in self.made(name)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def read_rows(self, name: str, start: int, stop: int, buffer: Buffer | None = None) -> Tensor:
        """Rows `start:stop` of dim 0."""
        if name in self.sparse:
            return self.read(name)[start:stop]
        return super().read_rows(name, start, stop, buffer)


def by_magnitude(parent: Checkpoint, specs: Mapping[str, MaskSpec], masks: MaskFile | None = None) -> Made:
    """Makes matrices sparse by the size of their weights alone, when they are asked for.

    What `masks`, the parent's, have pruned stays pruned.
    """

    def made(name: str) -> Iterator[MadeMatrix]:
        spec, lost_OI = specs[name], ~masks.read(name) if masks and name in masks else None
        in_parts = spec.pattern.group and spec.shape[-1] % 8 == 0  # so that the masks of rows are whole bytes
        parts = blocks(parent, name, PART_BYTES) if in_parts else [(0, parent.read(name))]
        for start, part_OI in parts:
            yield _by_magnitude(name, part_OI, spec, None if lost_OI is None else lost_OI[start : start + len(part_OI)])

    return made


def _by_magnitude(name: str, weight_OI: Tensor, spec: MaskSpec, lost_OI: Tensor | None) -> MadeMatrix:
    check_finite(name, weight_OI)
    mask_OI = Magnitude().sparse(weight_OI, None, spec.pattern, lost_OI).mask_OI
    check_continued(name, mask_OI, lost_OI)
    return MadeMatrix(pack(mask_OI), prune_(weight_OI, mask_OI))  # which was read for this


def write_sparse(view: SparseCheckpoint, masks: Mapping[str, MaskSpec], names: list[str], directory: Path) -> None:
    """Write the named tensors into an empty directory, and the masks of those that have any.

    A few threads each hold one matrix, or a block of another tensor.
    """
    specs = {name: TensorSpec(view.tensors[name].shape, view.tensors[name].torch_dtype) for name in names}
    total = sum(spec.size_bytes for spec in specs.values())
    with (
        progress.track("sparsify", total, "bytes") as step,
        blank_like(view, directory, specs) as blank,
        new_mask_file(directory / MASKS, masks) as mask_file,
    ):
        in_threads(lambda name: _write(view, name, blank, mask_file), _each(names), step)


def _each(names: list[str]) -> Generator[str, None, None]:
    yield from names


def _write(view: SparseCheckpoint, name: str, blank: Blank, masks: MaskWriter) -> int:
    """Write one tensor; its size in bytes."""
    if name in view.sparse:
        bits_start = start = 0
        for part in view.made(name):
            blank.write_at(name, start, part.weight)
            masks.put_bits(name, part.bits, bits_start)
            start, bits_start = start + part.weight.nbytes, bits_start + len(part.bits)
        return start
    for start, block in blocks(view, name, BLOCK_BYTES):
        check_finite(name, block)
        info = view.tensors[name]
        row_bytes = info.size_bytes // info.shape[0] if info.shape else 0
        blank.write_at(name, start * row_bytes, block)
    return view.tensors[name].size_bytes
