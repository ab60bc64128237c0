"""The record of a sparse model's pruned weights: one bit per weight, in `sparsity.masks` beside the model.

The file is in the safetensors format: per masked tensor, by its stored name, a uint8 tensor with the row-major mask, 8
weights to a byte from the lowest bit (1: kept). Shapes, patterns and input axes are in the header's metadata.

It does not end in .safetensors and is in no folder of such files: vLLM and other servers load every `*.safetensors`
of a model without an index, and some of them look into folders, and would take masks for weights.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from minitron_cli import stopping, strict_json
from minitron_cli.checkpoint import safetensors_file
from minitron_cli.checkpoint.safetensors_file import TensorInfo
from minitron_cli.checkpoint.writer import Blank, TensorSpec, blank_file
from minitron_cli.errors import CheckpointError, InputError, shown
from minitron_cli.sparse.pattern import IN_A_BYTE, Pattern

MASKS = "sparsity.masks"
FORMAT = "minitron_masks"  # key of the metadata
AGAIN = "sparsify the model again, or remove the file"


class MaskSpec(NamedTuple):
    """What is known of a tensor's mask without its bits."""

    shape: tuple[int, ...]
    pattern: Pattern
    axis: int | None
    """Axis of the inputs, along which groups lie; None if a share was taken of the whole tensor."""

    @property
    def size_bytes(self) -> int:
        return -(-math.prod(self.shape) // 8)

    @property
    def weights(self) -> int:
        """Number of the tensor's weights."""
        return math.prod(self.shape)

    @property
    def zeros(self) -> int:
        """Number of those that are pruned, as the pattern says."""
        if self.axis is None or not self.weights:
            return self.pattern.lost(self.weights)
        line = self.pattern.group or self.shape[self.axis]
        return self.weights // line * self.pattern.lost(line)

    def hold(self, bits: Tensor, *, is_whole: bool) -> bool:
        """Whether packed bits of a mask have its pattern: those of the whole tensor, or of some lines of it."""
        if self.axis == len(self.shape) - 1 and self.pattern.group in IN_A_BYTE and math.prod(self.shape) % 8 == 0:
            return self.pattern.holds_in_bits(bits)
        line = self.shape[-1]
        return self.pattern.holds(unpack(bits, self.shape if is_whole else (8 * len(bits) // line, line)), self.axis)

    def continues(self, before: "MaskSpec") -> bool:
        """Whether any mask of the tensor with the spec `before` becomes one with this when further weights go."""
        by_line = before.axis is not None or self.axis is None  # a share of the whole may be all of a line
        return by_line and self.shape == before.shape and self.pattern.continues(before.pattern)


class MaskWriter:
    """Open mask file, to be filled a tensor at a time in any order."""

    def __init__(self, blank: Blank, specs: Mapping[str, MaskSpec]) -> None:
        self._blank, self._specs = blank, specs

    def put(self, name: str, mask: Tensor) -> None:
        """Write the bool mask of a tensor. Its pattern must hold."""
        spec = self._specs[name]
        assert tuple(mask.shape) == spec.shape, f"{name}: the mask is {tuple(mask.shape)}, the header says {spec.shape}"
        self.put_bits(name, pack(mask))

    def put_bits(self, name: str, bits: Tensor, start: int = 0) -> None:
        """Write packed bits of a mask from byte `start` on: all, or lines of whole bytes. The pattern must hold."""
        spec = self._specs[name]
        is_whole = start == 0 and len(bits) == spec.size_bytes
        assert spec.hold(bits, is_whole=is_whole), f"{name}: the mask has not the pattern {spec.pattern}"
        self._blank.write_at(name, start, bits)


@contextmanager
def new_mask_file(path: Path, specs: Mapping[str, MaskSpec]) -> Iterator[MaskWriter]:
    """Create a mask file at full size, to be filled in the context; synced when it ends without an error."""
    ordered = {name: specs[name] for name in sorted(specs)}
    sizes = {name: TensorSpec((spec.size_bytes,), torch.uint8) for name, spec in ordered.items()}
    described = {name: [list(s.shape), str(s.pattern), s.axis] for name, s in ordered.items()}
    with blank_file(path, sizes, {FORMAT: json.dumps(described, separators=(",", ":"))}) as blank:
        yield MaskWriter(blank, ordered)


@dataclass(frozen=True)
class MaskFile:
    """A mask file whose header was validated. Reads one tensor's mask at a time."""

    path: Path
    specs: Mapping[str, MaskSpec]
    _tensors: Mapping[str, TensorInfo]

    @classmethod
    def open(cls, path: Path) -> "MaskFile":
        """Read the header. CheckpointError unless it describes every mask and each has the size that it should."""
        tensors = safetensors_file.read_header(path)
        described = strict_json.parse(
            safetensors_file.read_metadata(path).get(FORMAT, "{}").encode(), f"the header of {path}"
        )
        if described.keys() != tensors.keys() or not tensors:
            raise CheckpointError(f"{path} does not describe its masks: {AGAIN}")
        specs = {name: _spec(path, name, entry) for name, entry in described.items()}
        for name, spec in specs.items():
            if tensors[name].dtype != "U8" or tensors[name].shape != (spec.size_bytes,):
                raise CheckpointError(f"{path} describes the mask of {shown(name)} wrongly: {AGAIN}")
        return cls(path, specs, tensors)

    @classmethod
    def beside(cls, directory: Path) -> "MaskFile | None":
        """Masks of a model directory; None if it has no mask file."""
        path = directory / MASKS
        return cls.open(path) if path.is_file() else None

    def __contains__(self, name: str) -> bool:
        return name in self.specs

    def read(self, name: str) -> Tensor:
        """Bool mask of a tensor, in its shape. CheckpointError unless it has its pattern and ends in zero bits."""
        stopping.raise_if_stopped()
        spec = self.specs[name]
        bits = safetensors_file.read_tensor(self._tensors[name])
        mask = unpack(bits, spec.shape)
        if not torch.equal(pack(mask), bits) or not spec.pattern.holds(mask, spec.axis):
            raise CheckpointError(f"{self.path}: the mask of {shown(name)} has not the pattern {spec.pattern}: {AGAIN}")
        return mask

    def check(self, weights: Callable[[str], Tensor]) -> None:
        """Raise CheckpointError unless each pruned weight, by `weights` (stored name -> tensor), is exactly zero."""
        for name, spec in self.specs.items():
            tensor = weights(name)
            if tuple(tensor.shape) != spec.shape:
                raise CheckpointError(
                    f"{self.path}: {shown(name)} is {tuple(tensor.shape)}, and its mask {spec.shape}: {AGAIN}"
                )
            if count := int(tensor[~self.read(name)].count_nonzero()):
                raise CheckpointError(f"{self.path}: {count:,} pruned weights of {shown(name)} are not zero: {AGAIN}")

    @cached_property
    def patterns(self) -> tuple[str, ...]:
        """Patterns of the masked tensors, each once, sorted."""
        return tuple(sorted({str(spec.pattern) for spec in self.specs.values()}))

    @cached_property
    def weights(self) -> int:
        """Number of weights of the masked tensors."""
        return sum(spec.weights for spec in self.specs.values())

    def sparsity(self) -> float:
        """Share of zeros among these weights. Needs no bits, because every pattern holds."""
        return sum(spec.zeros for spec in self.specs.values()) / self.weights


def pack(mask: Tensor) -> Tensor:
    """Bits of a bool mask in row-major order as uint8 [ceil(numel / 8)], CPU, from the lowest; unused ones are 0."""
    return torch.from_numpy(np.packbits(mask.cpu().reshape(-1).numpy(), bitorder="little"))


def unpack(bits: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Bool mask of this shape from its packed bits, which are on the CPU."""
    flat = np.unpackbits(bits.numpy(), count=math.prod(shape), bitorder="little")
    return torch.from_numpy(flat.view(bool)).reshape(shape)


def _spec(path: Path, name: str, entry: Any) -> MaskSpec:
    try:
        shape, text, axis = entry
        is_sound = all(type(n) is int and n >= 0 for n in shape)
        is_sound = is_sound and (axis is None or (type(axis) is int and 0 <= axis < len(shape)))
        spec = MaskSpec(tuple(shape), Pattern.parse(text), axis)
        is_sound = is_sound and (spec.pattern.group is None if axis is None else spec.pattern.fits(shape[axis]))
    except (InputError, TypeError, ValueError):
        is_sound = False
    if not is_sound:
        raise CheckpointError(f"{path} describes the mask of {shown(name)} wrongly: {AGAIN}")
    return spec
