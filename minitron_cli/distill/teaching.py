"""The teacher's pass over a text, from which signals are made: shard by shard, by any number of processes.

A shard is the same whoever makes it: its blocks run in the same batches, and its draws depend on their places alone.
"""

# B sequence, T token, N counted position, P some of them, D hidden, V vocab

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minitron_cli import io, progress
from minitron_cli.artifacts import file_hashes
from minitron_cli.artifacts.manifest import sealed, unsealed
from minitron_cli.data.batches import Batch, Batches
from minitron_cli.data.pack import Blocks
from minitron_cli.distill.distributed import Precision
from minitron_cli.distill.fused.head_matmul import HeadInput, Logits, parts
from minitron_cli.distill.model_pair import Decoder, cast_, compute_dtype, last_hidden_states
from minitron_cli.distill.targets import targets
from minitron_cli.io import FileRecord
from minitron_cli.signals import shards
from minitron_cli.signals.encoding import BlockSignals, Encoding
from minitron_cli.signals.shards import Shard

MIN_SHARD_TOKENS, MAX_SHARD_TOKENS = 1 << 14, 1 << 22
SHARDS = 64  # of a text between these: what a kill loses, and what processes share
CHUNK_BYTES = 256 << 20  # of one chunk's probabilities and their sums
ENTRY_BYTES = 8  # of both, in fp32
RECORD = "record.json"


@dataclass(frozen=True)
class Piece:
    """One shard that is to be made."""

    split: str
    number: int
    blocks: tuple[int, ...]
    epochs: int

    @property
    def name(self) -> str:
        """Name of its file."""
        return shards.file_name(self.split, self.number)


def pieces(split: str, blocks: Sequence[int], length: int, epochs: int) -> list[Piece]:
    """Shards of these blocks of `length` tokens, in their order."""
    tokens = max(MIN_SHARD_TOKENS, min(MAX_SHARD_TOKENS, len(blocks) * length // SHARDS))
    size = max(1, tokens // length)
    return [Piece(split, i, tuple(blocks[part]), epochs) for i, part in enumerate(parts(len(blocks), size))]


class Teacher:
    """A model that is read for its signals."""

    def __init__(self, model: Any, device: torch.device, precision: Precision, batch_size: int) -> None:
        self.device, self.precision, self.batch_size = device, precision, batch_size
        cast_(model.requires_grad_(False).eval(), compute_dtype(precision))
        self._decoder = Decoder(model, device).to(device)
        self._decoder.check_head()

    @torch.no_grad()
    def signals(
        self, blocks: Blocks, piece: Piece, encoding: Encoding, step: progress.Step
    ) -> dict[int, list[BlockSignals]]:
        """Number of each block of a shard -> its signals in each pass."""
        found: dict[int, list[BlockSignals]] = {}
        for batch in Batches(blocks, piece.blocks, self.batch_size):
            found |= dict(self._of_batch(batch, encoding, piece.epochs))
            step(len(batch.sample_ids))
        return found

    def _of_batch(self, batch: Batch, encoding: Encoding, epochs: int) -> Iterator[tuple[int, list[BlockSignals]]]:
        with self._autocast():
            hidden_BTD = self._decoder(partial(last_hidden_states, batch=batch, device=self.device)).to(self.device)
        length, rows_N = hidden_BTD.shape[1], targets(batch).rows_N
        for i, block in enumerate(batch.sample_ids):
            places_N = rows_N[rows_N // length == i] % length
            side = HeadInput(hidden_BTD[i], self._decoder.head).rows(places_N.to(self.device))
            with self._autocast():
                logits = some_logits(side)
            yield block, encoding.encoded(logits, block, places_N.numpy(), epochs)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")


def some_logits(side: HeadInput) -> Iterator[Tensor]:
    """Logits of a few positions at a time, [P, V], each to be overwritten; products in the dtype of autocast here."""
    logits, vocab = Logits(side), slice(0, side.vocab)
    chunks = parts(len(side.hidden_ND), max(1, CHUNK_BYTES // (ENTRY_BYTES * side.vocab)))
    return (logits.finish_(logits.product_PQ(chunk, vocab))[0] for chunk in chunks)


@dataclass(frozen=True)
class MadeShard:
    """A finished shard."""

    path: Path
    record: FileRecord
    positions: int
    ids: int


@dataclass(frozen=True)
class ShardStore:
    """Finished shards in a stage's scratch directory, each with its hash in a directory that is there whole or not."""

    directory: Path

    def find(self, piece: Piece) -> MadeShard | None:
        """A shard that is there; None, after a warning if it is damaged, if it has to be made."""
        place = self._place(piece)
        if not place.is_dir():
            return None
        content, path = unsealed(place / RECORD) if (place / RECORD).is_file() else None, place / piece.name
        if content and path.is_file():
            record = FileRecord(*content["file"])
            if file_hashes.records([path]) == [record]:
                return MadeShard(path, record, content["positions"], content["ids"])
        progress.warn(f"{path} has changed since it was written, so it is made again")
        io.remove_tree(place)
        return None

    def put(self, piece: Piece, blocks: Mapping[int, Sequence[BlockSignals]], encoding: Encoding) -> None:
        """Write a shard."""
        io.make_dirs(self.directory)
        with io.new_dir(self._place(piece)) as place:
            shards.write(place / piece.name, blocks)
            self._seal(place, piece, encoding)

    def take(self, piece: Piece, path: Path, encoding: Encoding) -> None:
        """Keep a shard that another run has made."""
        io.make_dirs(self.directory)
        with io.new_dir(self._place(piece)) as place:
            io.link(path, place / piece.name)
            self._seal(place, piece, encoding)

    def _seal(self, place: Path, piece: Piece, encoding: Encoding) -> None:
        (record,), shard = file_hashes.fresh([place / piece.name]), Shard(place / piece.name, encoding)
        content = {"file": record, "positions": shard.positions, "ids": shard.ids}
        io.write_new_json(place / RECORD, sealed(content))

    def _place(self, piece: Piece) -> Path:
        return self.directory / piece.name.removesuffix(".safetensors")
