"""Safetensors of unfinished work, with a checksum by which damage of the disk is found when the work goes on."""

import zlib
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from minitron_cli.checkpoint.safetensors_file import read_metadata, read_safetensors
from minitron_cli.checkpoint.writer import raw_bytes, replace_safetensors
from minitron_cli.errors import CheckpointError, InputError

CHECKSUM = "crc32"  # key of the file's metadata


def replace_sealed(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a file in place of the one that may be there, atomically."""
    replace_safetensors(path, tensors, {CHECKSUM: _checksum(tensors)})


def read_sealed(path: Path) -> dict[str, Tensor]:
    """Every tensor of one file. CheckpointError if they are not those that were written."""
    found = read_safetensors(path)
    if read_metadata(path).get(CHECKSUM) != _checksum(found):
        raise CheckpointError(f"{path} is damaged: it is not what was written")
    return found


def first_damaged(directory: Path) -> Path | None:
    """A file in the directory or below it that is not what was written; None if all are whole."""
    return next((path for path in sorted(directory.rglob("*.safetensors")) if not _is_whole(path)), None)


def _is_whole(path: Path) -> bool:
    try:
        read_sealed(path)
    except InputError:
        return False
    return True


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    """Of names, shapes, dtypes and bytes; the same in any order."""
    found = 0
    for name, tensor in sorted(tensors.items()):
        found = zlib.crc32(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode(), found)
        found = zlib.crc32(raw_bytes(tensor), found)
    return f"{found:08x}"
