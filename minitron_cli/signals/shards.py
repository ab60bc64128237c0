"""Files of signals in the safetensors format: each holds some blocks and is read in place, block by block.

blocks      numbers of the blocks, int64 [B]
positions   start of what is stored of each block's positions, int64 [B + 1]
starts      start of the bytes of each block and pass, int64 [B * passes + 1]
ids         stored ids of each block and pass, int64 [B * passes]
entries     these ids, packed, uint8 (see `encoding`)
entropy     entropy of each position, fp16, if ids were drawn
roots       square root of each id's probability in 65,535ths, uint16, if they are the most probable
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from minitron_cli.checkpoint.safetensors_file import TensorInfo, read_header
from minitron_cli.checkpoint.writer import write_safetensors
from minitron_cli.signals.encoding import BlockSignals, Encoding
from minitron_cli.signals.rows import SignalRows

NUMPY = {"I64": np.int64, "U8": np.uint8, "U16": np.uint16, "F16": np.float16}


class Visit(NamedTuple):
    """One pass over one block."""

    block: int
    epoch: int


def file_name(split: str, number: int) -> str:
    """Name of a shard."""
    return f"{split}-{number:05d}.safetensors"


def write(path: Path, blocks: Mapping[int, Sequence[BlockSignals]]) -> None:
    """Write a new shard: number of a block -> its signals in each pass."""
    passes = [one for each in blocks.values() for one in each]
    positions = [max(len(each[0].entropy_N), len(each[0].roots_M)) for each in blocks.values()]
    arrays = {
        "blocks": np.array(list(blocks), np.int64),
        "positions": _starts(positions),
        "starts": _starts([len(one.entries) for one in passes]),
        "ids": np.array([one.ids for one in passes], np.int64),
        "entries": np.concatenate([one.entries for one in passes]),
        "roots": np.concatenate([one.roots_M for one in passes]),
        "entropy": np.concatenate([each[0].entropy_N for each in blocks.values()]),
    }
    write_safetensors(path, {name: torch.from_numpy(array) for name, array in arrays.items() if len(array)})


def _starts(sizes: Sequence[int]) -> np.ndarray:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(np.array(sizes, np.int64))])


class Shard:
    """One file, mapped into memory."""

    def __init__(self, path: Path, encoding: Encoding) -> None:
        self.path, self.encoding = path, encoding
        self._arrays = {name: _mapped(info) for name, info in read_header(path).items()}
        self.numbers: dict[int, int] = {block: i for i, block in enumerate(self._arrays["blocks"].tolist())}
        self.epochs = (len(self._arrays["starts"]) - 1) // len(self.numbers)

    @cached_property
    def positions(self) -> int:
        """Counted positions of all blocks."""
        return int(self._arrays["positions"][-1]) // (self.encoding.top_k or 1)

    @cached_property
    def ids(self) -> int:
        """Stored ids of all blocks in all passes."""
        return int(self._arrays["ids"].sum())

    def rows(self, visit: Visit) -> SignalRows:
        """Signals of one block in one pass."""
        i = self.numbers[visit.block]
        first, stop = self._arrays["positions"][i : i + 2].tolist()
        cell = i * self.epochs + visit.epoch
        begin, end = self._arrays["starts"][cell : cell + 2].tolist()
        return self.encoding.decoded(
            BlockSignals(
                entries=self._part("entries", begin, end),
                ids=int(self._arrays["ids"][cell]),
                roots_M=self._part("roots", first, stop),
                entropy_N=self._part("entropy", first, stop),
            )
        )

    def _part(self, name: str, start: int, stop: int) -> np.ndarray:
        return self._arrays[name][start:stop] if name in self._arrays else np.empty(0, np.uint8)


def _mapped(info: TensorInfo) -> np.ndarray:
    return np.memmap(info.file, NUMPY[info.dtype], mode="r", offset=info.start, shape=info.shape)


class StoredSignals:
    """Signals of one split of a text, in any number of shards."""

    def __init__(self, paths: Sequence[Path], encoding: Encoding) -> None:
        self.encoding = encoding
        self._shards = [Shard(path, encoding) for path in paths]
        self._of_block = {block: shard for shard in self._shards for block in shard.numbers}

    def __contains__(self, block: int) -> bool:
        return block in self._of_block

    @property
    def blocks(self) -> list[int]:
        """Numbers of the blocks, in the order of the files."""
        return list(self._of_block)

    @property
    def epochs(self) -> int:
        """Passes over the text that have draws of their own; later passes repeat them."""
        return self._shards[0].epochs

    def rows(self, visits: Sequence[Visit]) -> SignalRows:
        """Signals of the counted positions of some blocks, one after the other."""
        found = [self._of_block[v.block].rows(Visit(v.block, v.epoch % self.epochs)) for v in visits]
        return joined(found)


def joined(some: Sequence[SignalRows]) -> SignalRows:
    """Rows one after the other."""
    if len(some) == 1:
        return some[0]
    most = max(rows.ids_NK.shape[1] for rows in some)
    entropies = [rows.entropy_N for rows in some if rows.entropy_N is not None]
    first = some[0]
    return SignalRows(
        torch.cat(list(_padded((rows.ids_NK for rows in some), most))),
        torch.cat(list(_padded((rows.weights_NK for rows in some), most))),
        first.vocab,
        first.temperature,
        torch.cat(entropies) if entropies else None,
    )


def _padded(tensors: Iterator[torch.Tensor], width: int) -> Iterator[torch.Tensor]:
    return (torch.nn.functional.pad(x_NK, (0, width - x_NK.shape[1])) for x_NK in tensors)
