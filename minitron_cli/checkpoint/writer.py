"""Safetensors, written as a stream: shapes first, then the header, then one block of bytes after another.

The same tensors give the same bytes, whatever order of events led there.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from minitron_cli import io
from minitron_cli.checkpoint.reader import DTYPES, INDEX, WEIGHTS

MAX_SHARD_BYTES = 5 * 10**9
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class TensorSpec(NamedTuple):
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def size_bytes(self) -> int:
        return self.dtype.itemsize * torch.Size(self.shape).numel()


Content = Callable[[str], Iterable[Tensor]]  # a tensor's blocks, in row-major order


def write_checkpoint(
    directory: Path, specs: Mapping[str, TensorSpec], content: Content, max_shard_bytes: int = MAX_SHARD_BYTES
) -> dict[str, io.FileRecord]:
    """Write `model.safetensors`, or shards and their index, into a fresh directory. Holds one block at a time."""
    shards = _shards(specs, max_shard_bytes)
    if len(shards) == 1:
        return {WEIGHTS: _write_file(directory / WEIGHTS, shards[0], content)}
    records: dict[str, io.FileRecord] = {}
    weight_map: dict[str, str] = {}
    for i, shard in enumerate(shards):
        name = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        records[name] = _write_file(directory / name, shard, content)
        weight_map |= dict.fromkeys(shard, name)
    total = sum(spec.size_bytes for spec in specs.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    records[INDEX] = io.write_new_json(directory / INDEX, index)
    return records


def write_safetensors(path: Path, tensors: Mapping[str, Tensor]) -> io.FileRecord:
    """Write one new file. Names are sorted, so the bytes do not depend on the mapping's order."""
    ordered = {name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}
    specs = {name: TensorSpec(tuple(t.shape), t.dtype) for name, t in ordered.items()}
    return _write_file(path, specs, lambda name: [ordered[name]])


def _shards(specs: Mapping[str, TensorSpec], max_bytes: int) -> list[dict[str, TensorSpec]]:
    shards: list[dict[str, TensorSpec]] = [{}]
    room = max_bytes
    for name, spec in specs.items():
        if spec.size_bytes > room and shards[-1]:
            shards.append({})
            room = max_bytes
        shards[-1][name] = spec
        room -= spec.size_bytes
    return shards


def _write_file(path: Path, specs: Mapping[str, TensorSpec], content: Content) -> io.FileRecord:
    with io.new_file(path) as file:
        file.write(_header(specs))
        for name, spec in specs.items():
            before = file.size_bytes
            for block in content(name):
                assert block.dtype == spec.dtype, f"{name}: a block is {block.dtype}, the header says {spec.dtype}"
                file.write(_bytes(block))
            assert file.size_bytes - before == spec.size_bytes, f"{name}: its blocks do not add up to {spec.shape}"
    return file.record()


def _header(specs: Mapping[str, TensorSpec]) -> bytes:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, spec in specs.items():
        end = offset + spec.size_bytes
        header[name] = {"dtype": _NAMES[spec.dtype], "shape": list(spec.shape), "data_offsets": [offset, end]}
        offset = end
    blob = json.dumps(header, separators=(",", ":")).encode()
    blob += b" " * (-len(blob) % 8)  # tensors start aligned
    return len(blob).to_bytes(8, "little") + blob


def _bytes(tensor: Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data
