"""Loss per byte of text, which models of different tokenizers can be compared by.

All models read the same pieces of text, each with its own tokenizer, after its bos token or else its eos token, as
lm-eval's rolling likelihood does. A piece that is longer than a block goes on in the next one, after its last token.
Where a loss mask lets only some characters count, such as a chat's answers, all models read the others as context.
"""

# B block, T token, P piece

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from minitron_cli.data.batches import evenly_spaced
from minitron_cli.errors import CheckpointError, DataError
from minitron_cli.evaluate.perplexity import TokenBlocks, perplexity
from minitron_cli.evaluate.statistics import NATS_PER_BIT, Items, errors
from minitron_cli.results.evaluation import BITS_PER_BYTE, BYTE_PERPLEXITY, MetricResult

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TextBlocks(TokenBlocks, Protocol):
    """Blocks that also give the tokens of the text where a model reads a bos in place of one."""

    def text(self, i: int, /) -> Tensor: ...

    def text_mask(self, i: int, /) -> Tensor | None: ...


class Piece(NamedTuple):
    """The part of a document that is in one block."""

    document: int
    text: str
    scored: tuple[tuple[int, int], ...] | None = None
    """Half-open ranges of its characters that count; None: all."""

    @property
    def size_bytes(self) -> int:
        """Bytes that count."""
        ranges = ((0, len(self.text)),) if self.scored is None else self.scored
        return sum(len(self.text[start:stop].encode()) for start, stop in ranges)


@dataclass(frozen=True)
class BytesResult:
    """Loss of one model per byte."""

    items: Items
    """Bits per byte of each piece, weighted by its bytes."""

    def metrics(self) -> dict[str, MetricResult]:
        """Metrics as they are stored, by name."""
        bits = MetricResult(value=self.items.mean, n=self.items.clusters, **errors(self.items))
        perplexity = 2**self.items.mean
        spread = None if bits.stderr is None else perplexity * NATS_PER_BIT * bits.stderr  # to first order
        update = {"value": perplexity, "stderr": spread, "scale": "log"}
        return {BITS_PER_BYTE: bits, BYTE_PERPLEXITY: bits.model_copy(update=update)}


def pieces_of(blocks: TextBlocks, tokenizer: "PreTrainedTokenizerBase", max_blocks: int | None) -> list[Piece]:
    """Text of `max_blocks` evenly spaced blocks (None: all), without special tokens, block by block.

    DataError if none of it counts.
    """
    pieces = [piece for i in evenly_spaced(len(blocks), max_blocks) for piece in _pieces(blocks, i, tokenizer)]
    if not pieces:
        raise DataError("loss per byte: nothing but special tokens counts in the held-out text: give longer answers")
    return pieces


def loss_per_byte(
    model: Any, tokenizer: "PreTrainedTokenizerBase", pieces: Sequence[Piece], *, length: int, batch_size: int = 8
) -> BytesResult:
    """Loss of a model on the pieces, in blocks of `length` of its own tokens."""
    found = perplexity(model, _OwnTokens.of(pieces, tokenizer, length), batch_size=batch_size).items
    assert found.groups is not None
    assert found.weights is not None
    nats_P = np.bincount(found.groups, np.multiply(found.values, found.weights), len(pieces))
    sizes = [piece.size_bytes for piece in pieces]
    bits = (nats_P / NATS_PER_BIT / sizes).tolist()
    return BytesResult(Items(bits, sizes, [piece.document for piece in pieces], "block"))


def _pieces(blocks: TextBlocks, i: int, tokenizer: "PreTrainedTokenizerBase") -> Iterator[Piece]:
    mask_T = blocks.text_mask(i)
    counts = [True] * len(blocks.text(i)) if mask_T is None else mask_T.tolist()
    rows = zip(blocks.documents(i).tolist(), blocks.text(i).tolist(), counts, strict=True)
    for document, some in groupby(rows, key=lambda row: row[0]):
        _, tokens, scored = zip(*some, strict=True)
        text = tokenizer.decode(tokens, skip_special_tokens=True)
        piece = Piece(document, text, None if all(scored) else tuple(_ranges(tokens, scored, text, tokenizer)))
        if text.strip() and piece.size_bytes:
            yield piece


def _ranges(
    tokens: Sequence[int], scored: Sequence[bool], text: str, tokenizer: "PreTrainedTokenizerBase"
) -> Iterator[tuple[int, int]]:
    """Ranges of the characters of runs of scored tokens."""
    start = stop = 0
    for is_scored, run in groupby(scored):
        stop += len(list(run))
        end = _agreement(text, tokenizer.decode(tokens[:stop], skip_special_tokens=True))
        if is_scored and start < end:
            yield start, end
        start = max(start, end)


def _agreement(text: str, other: str) -> int:
    """Number of characters that both begin with: a cut character is written otherwise."""
    pairs = enumerate(zip(text, other, strict=False))
    return next((i for i, (one, its) in pairs if one != its), min(len(text), len(other)))


def _tokens(piece: Piece, tokenizer: "PreTrainedTokenizerBase") -> list[tuple[int, bool]]:
    """A model's own tokens of a piece, and whether each counts: if any of its characters does."""
    if piece.scored is None:
        return [(token, True) for token in tokenizer(piece.text, add_special_tokens=False)["input_ids"]]
    if not tokenizer.is_fast:
        raise CheckpointError(
            "loss per byte of chats and completions needs a tokenizer that tells the characters of its tokens: "
            "give the model a tokenizer.json, or evaluate it on plain text"
        )
    found = tokenizer(piece.text, add_special_tokens=False, return_offsets_mapping=True)
    return [
        (token, any(first < stop and max(end, first + 1) > start for start, stop in piece.scored))
        for token, (first, end) in zip(found["input_ids"], found["offset_mapping"], strict=True)
    ]


@dataclass(frozen=True)
class _OwnTokens:
    """Pieces of text as blocks of a model's own tokens; the number of a piece stands for its document."""

    tokens_BT: Tensor
    positions_BT: Tensor
    pieces_BT: Tensor
    scored_BT: Tensor
    """1 for each token that counts, else 0."""

    @classmethod
    def of(cls, pieces: Sequence[Piece], tokenizer: "PreTrainedTokenizerBase", length: int) -> "_OwnTokens":
        before = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        if before is None:
            raise CheckpointError("the tokenizer has neither a bos nor an eos token to begin text with: name one")
        rows = list(_rows([_tokens(piece, tokenizer) for piece in pieces], before, length))
        rows += [(before, 0, 0, False)] * (-len(rows) % length)
        columns = torch.tensor(rows).view(-1, length, 4)
        return cls(*columns.unbind(-1))

    def __len__(self) -> int:
        return len(self.tokens_BT)

    def tokens(self, i: int, /) -> Tensor:
        return self.tokens_BT[i]

    def positions(self, i: int, /) -> Tensor:
        return self.positions_BT[i]

    def documents(self, i: int, /) -> Tensor:
        return self.pieces_BT[i]

    def loss_mask(self, i: int, /) -> Tensor:
        return self.scored_BT[i].bool()


def _rows(
    pieces: Sequence[Sequence[tuple[int, bool]]], before: int, length: int
) -> Iterator[tuple[int, int, int, bool]]:
    """Token, position, piece, and whether it counts; every token of a piece follows another one in its block.

    At position 0 are tokens that are not predicted: the one before a part of a piece, and the one that fills a block
    with no room for more.
    """
    used = 0
    for piece, tokens in enumerate(pieces):
        last, start = (before, False), 0
        while start < len(tokens):
            room = length - used % length
            part = [last, *tokens[start : start + room - 1]]
            yield from ((token, position, piece, counts) for position, (token, counts) in enumerate(part))
            used, start, last = used + len(part), start + len(part) - 1, part[-1]
