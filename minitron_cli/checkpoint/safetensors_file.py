"""One safetensors file: its header, where the bytes of each tensor are, and the bytes.

Nothing in a file is trusted: headers are bounded and must account for every byte, and no pickle is ever opened.
"""

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from minitron_cli import strict_json
from minitron_cli.errors import CheckpointError, shown

MAX_HEADER_BYTES = 16 << 20
MAX_TENSORS = 100_000
MAX_DIMS = 8
READ_BYTES = 1 << 30  # at once: macOS refuses 2 GiB and more

QUANTIZED = "the checkpoint is quantized; give the original weights"

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}

PACKED = ("F4", "F6_E2M3", "F6_E3M2")  # several numbers to a byte or across bytes; torch has no such dtypes

Buffer = Callable[[int], Tensor]  # size in bytes -> uint8 tensor to read into


NO_FILE = Path()
"""File of tensors that are zero and lie in none."""


class TensorInfo(NamedTuple):
    """Location of one tensor on disk. `start` is its offset in bytes from the beginning of `file`."""

    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    size_bytes: int

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]

    @property
    def rows(self) -> int:
        """Size of dim 0; 1 for a scalar, which is read as one row."""
        return self.shape[0] if self.shape else 1

    def entry(self, position: int) -> "TensorInfo":
        """Entry of dim 0, as a tensor of its own."""
        size_bytes = self.size_bytes // self.shape[0]
        return TensorInfo(self.dtype, self.shape[1:], self.file, self.start + position * size_bytes, size_bytes)

    @classmethod
    def zeros(cls, dtype: str, shape: tuple[int, ...]) -> "TensorInfo":
        """A tensor of zeros that no file holds."""
        return cls(dtype, shape, NO_FILE, 0, DTYPES[dtype].itemsize * math.prod(shape))


def read_header(path: Path) -> dict[str, TensorInfo]:
    """The tensors of one safetensors file, in file order. CheckpointError unless every byte is accounted for."""
    header, _, data_start, size = _header(path)
    if len(header) > MAX_TENSORS:
        raise CheckpointError(f"{path} lists {len(header):,} tensors: more than {MAX_TENSORS:,}; check the file")
    tensors = [(name, _tensor_info(path, name, entry, data_start)) for name, entry in header.items()]
    # Empty tensors share an offset with the next one and sort before it.
    tensors.sort(key=lambda item: (item[1].start, item[1].size_bytes))
    if _gapless_end(tensors, data_start) != size:
        raise CheckpointError(f"{path} is truncated or its tensors overlap: download it again")
    return dict(tensors)


def read_metadata(path: Path) -> dict[str, str]:
    """Texts that one safetensors file stores beside its tensors, by key."""
    return _header(path)[1]


def _header(path: Path) -> tuple[dict[str, Any], dict[str, str], int, int]:
    """Entries of the tensors, metadata, offset of the first tensor, and size of one safetensors file in bytes."""
    size = strict_json.regular_size(path)
    with open(path, "rb") as file:
        prefix = file.read(8)
        if prefix == b"version ":
            raise CheckpointError(f"{path} is a git-lfs pointer, not the weights: run `git lfs pull`")
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or length < 2 or length > min(MAX_HEADER_BYTES, size - 8):
            raise CheckpointError(f"{path} is not a complete safetensors file: download it again")
        header = strict_json.parse(file.read(length), f"the header of {path}")
    metadata = header.pop("__metadata__", None) or {}  # some writers store null
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"{path} has metadata that is not text: download it again")
    return header, metadata, 8 + length, size


def _tensor_info(path: Path, name: str, entry: Any, data_start: int) -> TensorInfo:
    if isinstance(entry, dict) and entry.get("dtype") in PACKED:
        raise CheckpointError(f"tensor {shown(name)} is stored as {entry['dtype']}: {QUANTIZED}")
    try:
        dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        sound = len(shape) <= MAX_DIMS and all(type(n) is int and n >= 0 for n in (*shape, begin, end))
        sound = sound and end - begin == math.prod(shape) * DTYPES[dtype].itemsize
    except (KeyError, TypeError, ValueError):
        sound = False
    if not sound:
        raise CheckpointError(f"{path} describes tensor {shown(name)} wrongly: download the file again")
    return TensorInfo(dtype, shape, path, data_start + begin, end - begin)


def _gapless_end(tensors: list[tuple[str, TensorInfo]], start: int) -> int | None:
    for _, info in tensors:
        if info.start != start:
            return None
        start += info.size_bytes
    return start


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of one file."""
    return {name: read_tensor(info) for name, info in read_header(path).items()}


def read_tensor(info: TensorInfo) -> Tensor:
    """One whole tensor, in its stored dtype."""
    return read_bytes(info, 0, info.size_bytes).view(info.torch_dtype).reshape(info.shape)


def read_bytes(info: TensorInfo, offset: int, size_bytes: int, buffer: Buffer | None = None) -> Tensor:
    """Bytes of a tensor from an offset on, as uint8."""
    content = buffer(size_bytes) if buffer else torch.empty(size_bytes, dtype=torch.uint8)
    if size_bytes == 0:
        return content
    if info.file == NO_FILE:
        return content.zero_()
    view = content.numpy().data
    fd = os.open(info.file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        done = 0
        while done < size_bytes:
            # preadv reads at an offset, so threads share a file without a lock, and straight into the tensor's memory.
            count = os.preadv(fd, [view[done : done + READ_BYTES]], info.start + offset + done)
            if count == 0:
                raise CheckpointError(
                    f"{info.file} became shorter while it was read: nothing else may write to it; try again"
                )
            done += count
    finally:
        os.close(fd)
    return content
