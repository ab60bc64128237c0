"""Checkpoints on disk: their tensors, where the bytes are, and the bytes.

Nothing in a checkpoint directory is trusted: names stay inside the directory, files are regular, headers are
bounded and must account for every byte, and no pickle is ever opened.
"""

import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from minitron_cli import stopping, strict_json
from minitron_cli.checkpoint import directory, other_formats, wrappers
from minitron_cli.errors import CheckpointError, shown
from minitron_cli.stacked_names import stacks

MAX_HEADER_BYTES = 16 << 20
MAX_TENSORS = 100_000
MAX_DIMS = 8
READ_BYTES = 1 << 30  # at once: macOS refuses 2 GiB and more

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

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

PLAIN = frozenset({"F64", "F32", "F16", "BF16"})  # of weights that are not quantized
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


@dataclass(frozen=True)
class Checkpoint:
    """A Hugging Face checkpoint directory: its config and the place of every tensor.

    Of a multimodal wrapper, the text model in it, and beside it what is around it.
    """

    path: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]
    remarks: tuple[str, ...] = ()
    """What was left out of the files, one sentence each."""
    wrapper: wrappers.Wrapped | None = None

    @classmethod
    def open(cls, path: Path) -> "Checkpoint":
        """Read config, index and headers, but no tensor. CheckpointError unless all of them are valid and complete."""
        path = Path(path)
        if not path.is_dir():
            raise CheckpointError(f"{path} is not a directory: give the directory of a Hugging Face checkpoint")
        directory.check(path)
        if reason := other_formats.instead_of_a_checkpoint(path):
            raise CheckpointError(reason)
        config, tensors = strict_json.load(path / "config.json", finite=False), _locate(path)
        _refuse_integers(tensors)
        kept = _without_leftover(config, {info.dtype for info in tensors.values()})
        own, text, wrapper = wrappers.unwrap(kept, tensors)
        remarks = _remarks(config, cls(path, kept, text))
        return cls(path, own, text, tuple(remarks), wrapper)

    def named(self, names: Iterable[str]) -> "Checkpoint":
        """The same checkpoint under these names, which may be of entries of stacks (`stacked_names.py`).

        A tensor of which no name takes an entry keeps its own.
        """
        tensors: dict[str, TensorInfo] = {}
        taken = {stored: parts for stored, parts in stacks(names).items() if parts != [stored]}
        for stored, info in self.tensors.items():
            count = info.rows if stored in taken else 0
            tensors |= {f"{stored}[{i}]": info.entry(i) for i in range(count)} if count else {stored: info}
        return replace(self, tensors=tensors)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: info.shape for name, info in self.tensors.items()}

    @property
    def stored(self) -> Mapping[str, TensorInfo]:
        """Every tensor in the files, those around a text model included."""
        return {**self.tensors, **(self.wrapper.tensors if self.wrapper else {})}

    @property
    def file_config(self) -> Mapping[str, Any]:
        """What config.json holds: the config of the whole, where `config` is that of the text model in it."""
        return self.wrapper.config_of(self.config) if self.wrapper else self.config

    @property
    def without_wrapper(self) -> "Checkpoint":
        """The text model alone."""
        return replace(self, wrapper=None)

    @cached_property
    def size_bytes(self) -> int:
        return sum(info.size_bytes for info in self.tensors.values())

    @cached_property
    def dtype(self) -> torch.dtype:
        """Dtype in which most of the numbers are stored."""
        return main_dtype((info.torch_dtype, math.prod(info.shape)) for info in self.tensors.values())

    def read(self, name: str) -> Tensor:
        """One whole tensor, in its stored dtype. Interrupted, as by `read_rows`, if a stop was requested."""
        stopping.raise_if_stopped()
        return read_tensor(self.tensors[name])

    def read_rows(self, name: str, start: int, stop: int, buffer: Buffer | None = None) -> Tensor:
        """Rows `start:stop` of dim 0, in memory from `buffer` if given, else in new memory."""
        stopping.raise_if_stopped()
        info = self.tensors[name]
        row_bytes = info.size_bytes // info.rows
        rows = _read(info, start * row_bytes, (stop - start) * row_bytes, buffer)
        return rows.view(info.torch_dtype).reshape(stop - start, *info.shape[1:])


def main_dtype(counts: Iterable[tuple[torch.dtype, int]]) -> torch.dtype:
    """Floating dtype of most numbers, from the dtype and the number of elements of each tensor."""
    total: Counter[torch.dtype] = Counter()
    for dtype, elements in counts:
        total[dtype] += elements if dtype.is_floating_point else 0
    return max(total, key=lambda dtype: (total[dtype], dtype.is_floating_point, dtype.itemsize))


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of one file."""
    return {name: read_tensor(info) for name, info in read_header(path).items()}


def read_tensor(info: TensorInfo) -> Tensor:
    """One whole tensor, in its stored dtype."""
    return _read(info, 0, info.size_bytes).view(info.torch_dtype).reshape(info.shape)


def _read(info: TensorInfo, offset: int, size_bytes: int, buffer: Buffer | None = None) -> Tensor:
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


def _without_leftover(config: dict[str, Any], dtypes: Iterable[str]) -> dict[str, Any]:
    """Config without a quantization that none of the tensors has."""
    is_leftover = PLAIN.issuperset(dtypes)
    return {name: value for name, value in config.items() if name != "quantization_config" or not is_leftover}


def _remarks(config: Mapping[str, Any], found: Checkpoint) -> Iterator[str]:
    """Sentences on what config.json says of the tensors and is not so."""
    stored = str(found.dtype).removeprefix("torch.") if found.tensors else ""
    if config.keys() - found.config.keys():
        yield f"config.json has a quantization_config, but the weights are plain {stored}: it is left out"
    said = config.get("dtype", config.get("torch_dtype"))
    if isinstance(said, str) and said != stored:
        yield f"config.json says {shown(said)}, but the weights are stored as {stored}: `--dtype auto` is {stored}"


def _refuse_integers(tensors: Mapping[str, TensorInfo]) -> None:
    for name, info in tensors.items():
        if name.endswith(".weight") and not info.torch_dtype.is_floating_point:
            raise CheckpointError(f"tensor {shown(name)} is stored as {info.dtype}: {QUANTIZED}")


def _locate(path: Path) -> dict[str, TensorInfo]:
    index, single = path / INDEX, path / WEIGHTS
    if index.exists() and single.exists():
        raise CheckpointError(f"{path} holds both {WEIGHTS} and {INDEX}: remove the stale one")
    if index.exists():
        return _follow_index(path, index)
    if single.exists():
        return read_header(single)
    raise CheckpointError(f"{path} holds no {WEIGHTS} and no {INDEX}: give the directory of a complete checkpoint")


def _follow_index(path: Path, index: Path) -> dict[str, TensorInfo]:
    content = strict_json.load(index)
    weight_map = content.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map: restore the file")
    if not isinstance(content.get("metadata"), dict):  # may be empty
        raise CheckpointError(f"{index} has no metadata, and transformers needs it: restore the file")
    files = _shards(path, index, weight_map)
    found: dict[str, TensorInfo] = {}
    for file in files:
        for name, info in read_header(file).items():
            if name in found:
                raise CheckpointError(
                    f"tensor {shown(name)} is in {found[name].file.name} and in {file.name}: remove one"
                )
            # Stock transformers reads whole shards, whatever else the index says of them.
            if weight_map.get(name, file.name) != file.name:
                raise CheckpointError(
                    f"tensor {shown(name)} is in {file.name}, and {INDEX} says {shown(weight_map[name])}: "
                    "restore the index"
                )
            found[name] = info
    if absent := sorted(weight_map.keys() - found.keys()):
        raise CheckpointError(
            f"tensor {shown(absent[0])} of {INDEX} is not in {weight_map[absent[0]]}: download the shard again"
        )
    return found


def _shards(path: Path, index: Path, weight_map: Mapping[str, Any]) -> list[Path]:
    names = set()
    for value in weight_map.values():
        if not _is_plain(value):
            raise CheckpointError(
                f"{index} points at {shown(value)}: a shard must be a plain file name in the same directory"
            )
        if not value.endswith(".safetensors"):
            raise CheckpointError(
                f"{index} points at {value!r}: only .safetensors shards are read; convert the checkpoint"
            )
        names.add(value)
    if missing := sorted(name for name in names if not (path / name).exists()):
        more = f" and {len(missing) - 2} more" if len(missing) > 2 else ""
        raise CheckpointError(f"{path} lacks {', '.join(missing[:2])}{more}: download the missing shards")
    return [path / name for name in sorted(names)]


def _is_plain(name: object) -> bool:
    """Whether a shard's name is a plain file name. Not resolved: the files of hub caches are links to elsewhere."""
    if not isinstance(name, str) or not 0 < len(name) <= 100:
        return False
    return name.isprintable() and not name.startswith(".") and "/" not in name and "\\" not in name


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


def blocks(
    checkpoint: Checkpoint, name: str, block_bytes: int = 16 << 20, buffer: Buffer | None = None
) -> Iterator[tuple[int, Tensor]]:
    """(first row, rows) of one tensor in blocks of about `block_bytes`; a vector or scalar is one block."""
    info = checkpoint.tensors[name]
    if len(info.shape) < 2:
        yield 0, checkpoint.read(name)
        return
    step = max(1, block_bytes * info.shape[0] // max(1, info.size_bytes))
    for start in range(0, info.shape[0], step):
        yield start, checkpoint.read_rows(name, start, min(start + step, info.shape[0]), buffer)
