"""Checkpoints on disk: their config, and the tensors of all their files.

Nothing in a checkpoint directory is trusted: names stay inside the directory, files are regular, and each is read as
`safetensors_file.py` does.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minitron_cli import stopping, strict_json
from minitron_cli.checkpoint import base_names, config_checks, directory, other_formats, wrappers
from minitron_cli.checkpoint.safetensors_file import QUANTIZED, Buffer, TensorInfo, read_bytes, read_header, read_tensor
from minitron_cli.errors import CheckpointError, shown
from minitron_cli.stacked_names import stacks

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

PLAIN = frozenset({"F64", "F32", "F16", "BF16"})  # of weights that are not quantized


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
        config, tensors = config_checks.tagged(strict_json.load(path / "config.json", finite=False)), _locate(path)
        _refuse_integers(tensors)
        kept = _without_leftover(config, {info.dtype for info in tensors.values()})
        own, text, wrapper = wrappers.unwrap(kept, base_names.in_memory(kept, tensors))
        found = cls(path, own, text, wrapper=wrapper)
        remarks = _remarks(config, replace(found, config=kept))
        return replace(found, config=_stored_as(found.dtype, own) if text else own, remarks=tuple(remarks))

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
        rows = read_bytes(info, start * row_bytes, (stop - start) * row_bytes, buffer)
        return rows.view(info.torch_dtype).reshape(stop - start, *info.shape[1:])


def main_dtype(counts: Iterable[tuple[torch.dtype, int]]) -> torch.dtype:
    """Floating dtype of most numbers, from the dtype and the number of elements of each tensor."""
    total: Counter[torch.dtype] = Counter()
    for dtype, elements in counts:
        total[dtype] += elements if dtype.is_floating_point else 0
    return max(total, key=lambda dtype: (total[dtype], dtype.is_floating_point, dtype.itemsize))


def _without_leftover(config: dict[str, Any], dtypes: Iterable[str]) -> dict[str, Any]:
    """Config without a quantization that none of the tensors has."""
    is_leftover = PLAIN.issuperset(dtypes)
    return {name: value for name, value in config.items() if name != "quantization_config" or not is_leftover}


def _stored_as(dtype: torch.dtype, config: Mapping[str, Any]) -> dict[str, Any]:
    """Config that states this dtype where it states one: what is made from it is read in the dtype that it states."""
    name = str(dtype).removeprefix("torch.")
    return {**config, **{field: name for field in ("dtype", "torch_dtype") if isinstance(config.get(field), str)}}


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
