"""Writes safetensors: headers from shapes, then the tensors' bytes, a block at a time and in any order.

The same tensors give the same bytes, whatever the order in which blocks are written. In a checkpoint, entries of a
stack (`stacked_names.py`) lie side by side and the header has the whole.
"""

import json
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

from minitron_cli import io, stopping
from minitron_cli.checkpoint import base_names
from minitron_cli.checkpoint.reader import INDEX, WEIGHTS, Checkpoint
from minitron_cli.checkpoint.safetensors_file import DTYPES, read_tensor
from minitron_cli.stacked_names import entry, stacks, stored_shapes

MAX_SHARD_BYTES = 5 * 10**9
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class TensorSpec(NamedTuple):
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def size_bytes(self) -> int:
        return self.dtype.itemsize * torch.Size(self.shape).numel()


TensorBlocks = Callable[[str], Iterable[Tensor]]  # name of a tensor -> its blocks in row-major order


class Blank:
    """Tensors with reserved space on disk, to be filled a block at a time from any thread."""

    def __init__(self, specs: Mapping[str, TensorSpec]) -> None:
        self.specs = specs
        self.missing_bytes = _payload(specs)
        self._places: dict[str, tuple[io.SizedFile, int]] = {}
        self._lock = threading.Lock()

    def place(self, file: io.SizedFile, specs: Mapping[str, TensorSpec], start: int) -> None:
        """Assign consecutive space in a file, from byte `start`, to the tensors `specs`."""
        for name, spec in specs.items():
            self._places[name] = file, start
            start += spec.size_bytes

    def write_at(self, name: str, offset: int, block: Tensor) -> None:
        """Write a block of a tensor at `offset` bytes from its beginning. Blocks must not overlap.

        Interrupted if a stop was requested.
        """
        stopping.raise_if_stopped()
        (file, start), spec = self._places[name], self.specs[name]
        assert block.dtype == spec.dtype, f"{name}: a block is {block.dtype}, the header says {spec.dtype}"
        assert offset + block.nbytes <= spec.size_bytes, f"{name}: its blocks do not add up to {spec.shape}"
        file.write_at(start + offset, raw_bytes(block))
        with self._lock:
            self.missing_bytes -= block.nbytes

    def fill(self, name: str, blocks: Iterable[Tensor]) -> None:
        """Write a whole tensor from its blocks in row-major order."""
        offset = 0
        for block in blocks:
            self.write_at(name, offset, block)
            offset += block.nbytes


@contextmanager
def blank_checkpoint(
    directory: Path,
    specs: Mapping[str, TensorSpec],
    max_shard_bytes: int = MAX_SHARD_BYTES,
    stored_names: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[Blank]:
    """Create `model.safetensors`, or shards and their index, at full size with headers; to be filled in the context.

    Entries of a stack are filled one by one. Everything is synced to disk when the context ends without an error. In
    the files a tensor has its name of `stored_names`, if there is one.
    """
    shards = _shards(specs, max_shard_bytes)
    numbered = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    names = numbered if len(shards) > 1 else [WEIGHTS]
    stored = [_stored({stored_names.get(tensor, tensor): spec for tensor, spec in shard.items()}) for shard in shards]
    files = {directory / file: (filled, listed) for file, filled, listed in zip(names, shards, stored, strict=True)}
    with _blank(files) as blank:
        yield blank
    if len(shards) > 1:
        weight_map = {tensor: file for file, listed in zip(names, stored, strict=True) for tensor in listed}
        io.write_new_json(directory / INDEX, {"metadata": {"total_size": _payload(specs)}, "weight_map": weight_map})


def write_checkpoint(
    directory: Path, specs: Mapping[str, TensorSpec], content: TensorBlocks, max_shard_bytes: int = MAX_SHARD_BYTES
) -> None:
    """Write a checkpoint, tensor by tensor. Holds one block at a time."""
    with blank_checkpoint(directory, specs, max_shard_bytes) as blank:
        for name in specs:
            blank.fill(name, content(name))


def size_on_disk(specs: Mapping[str, TensorSpec]) -> int:
    """Size of the weight files in bytes, headers included."""
    return sum(len(_header(_stored(shard))) + _payload(shard) for shard in _shards(specs, MAX_SHARD_BYTES))


def write_safetensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Write one new file. Names are sorted, so the bytes do not depend on the mapping's order."""
    ordered = {name: tensors[name] for name in sorted(tensors)}
    specs = {name: TensorSpec(tuple(t.shape), t.dtype) for name, t in ordered.items()}
    with blank_file(path, specs, metadata) as blank:
        for name, tensor in ordered.items():
            blank.fill(name, [tensor])


@contextmanager
def blank_file(
    path: Path, specs: Mapping[str, TensorSpec], metadata: Mapping[str, str] = MappingProxyType({})
) -> Iterator[Blank]:
    """Create one file at full size with its header, in which `metadata` are stored; as by `blank_checkpoint`."""
    with _blank({path: (specs, specs)}, metadata) as blank:
        yield blank


def replace_safetensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Write a file in place of the one that may be there, atomically; after an error the old one is there alone."""
    temporary = path.with_name(f"{io.TEMPORARY}{path.name}-{secrets.token_hex(4)}")
    try:
        write_safetensors(temporary, tensors, metadata)
        io.disk.replace(temporary, path)
    except BaseException:
        with suppress(OSError):  # the first error is the one to report
            io.disk.remove_file(temporary)
        raise


def specs_around(like: Checkpoint) -> dict[str, TensorSpec]:
    """Tensors around a text model; none where it is in no wrapper."""
    tensors = like.wrapper.tensors if like.wrapper else {}
    return {name: TensorSpec(info.shape, info.torch_dtype) for name, info in tensors.items()}


@contextmanager
def blank_like(
    like: Checkpoint,
    directory: Path,
    specs: Mapping[str, TensorSpec],
    *,
    changed: Mapping[str, Tensor] = MappingProxyType({}),
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> Iterator[Blank]:
    """Blank for the tensors of a model as `like` stores it: in the wrapper that it has, if any.

    The wrapper's other tensors are copied when the context ends, or are those of `changed`.
    """
    if like.wrapper is None:
        with blank_checkpoint(directory, specs, max_shard_bytes, base_names.in_files(like.config, specs)) as blank:
            yield blank
        return
    copied = specs_around(like) | {name: TensorSpec(tuple(t.shape), t.dtype) for name, t in changed.items()}
    stored_names = {name: like.wrapper.stored_name(name) for name in specs}
    with blank_checkpoint(directory, {**specs, **copied}, max_shard_bytes, stored_names) as blank:
        yield blank
        for name, info in like.wrapper.tensors.items():
            blank.fill(name, [changed[name] if name in changed else read_tensor(info)])


@contextmanager
def _blank(
    files: Mapping[Path, tuple[Mapping[str, TensorSpec], Mapping[str, TensorSpec]]],
    metadata: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[Blank]:
    """Files at full size, of which each has the tensors that are filled and those that its header lists."""
    blank = Blank({name: spec for specs, _ in files.values() for name, spec in specs.items()})
    with ExitStack() as opened:
        for path, (specs, stored) in files.items():
            header = _header(stored, metadata)
            file = opened.enter_context(io.sized_file(path, len(header) + _payload(specs)))
            file.write_at(0, header)
            blank.place(file, specs, len(header))
        yield blank
        assert not blank.missing_bytes, f"{blank.missing_bytes} bytes do not add up to what the headers say"


def _shards(specs: Mapping[str, TensorSpec], max_bytes: int) -> list[dict[str, TensorSpec]]:
    """Tensors of each shard in the order of their bytes: the entries of a stack are together."""
    shards: list[dict[str, TensorSpec]] = [{}]
    room = max_bytes
    for names in stacks(specs).values():
        some = {name: specs[name] for name in names}
        if _payload(some) > room and shards[-1]:
            shards.append({})
            room = max_bytes
        shards[-1] |= some
        room -= _payload(some)
    return shards


def _stored(specs: Mapping[str, TensorSpec]) -> Mapping[str, TensorSpec]:
    """Tensors as a header lists them, each stack as one."""
    shapes = stored_shapes({name: spec.shape for name, spec in specs.items()})
    dtypes = {entry(name).stored: spec.dtype for name, spec in specs.items()}
    return {name: TensorSpec(shape, dtypes[name]) for name, shape in shapes.items()}


def _payload(specs: Mapping[str, TensorSpec]) -> int:
    return sum(spec.size_bytes for spec in specs.values())


def _header(specs: Mapping[str, TensorSpec], metadata: Mapping[str, str] = MappingProxyType({})) -> bytes:
    header: dict[str, object] = {"__metadata__": {"format": "pt", **metadata}}
    offset = 0
    for name, spec in specs.items():
        end = offset + spec.size_bytes
        header[name] = {"dtype": _NAMES[spec.dtype], "shape": list(spec.shape), "data_offsets": [offset, end]}
        offset = end
    blob = json.dumps(header, separators=(",", ":")).encode()
    blob += b" " * (-len(blob) % 8)  # aligns the tensors' data to 8 bytes, as the format recommends
    return len(blob).to_bytes(8, "little") + blob


def raw_bytes(tensor: Tensor) -> memoryview:
    """Bytes of a tensor in row-major order; its own memory where that is so."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data
