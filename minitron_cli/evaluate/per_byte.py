"""Loss per byte of text, which models of different tokenizers can be compared by.

All models read the same pieces of text, each with its own tokenizer, after its bos token or else its eos token, as
lm-eval's rolling likelihood does. A piece that is longer than a block goes on in the next one, after its last token.
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
from minitron_cli.errors import CheckpointError
from minitron_cli.evaluate.perplexity import TokenBlocks, perplexity
from minitron_cli.evaluate.statistics import NATS_PER_BIT, Items, errors
from minitron_cli.results.evaluation import BITS_PER_BYTE, BYTE_PERPLEXITY, MetricResult

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TextBlocks(TokenBlocks, Protocol):
    """Blocks that also give the tokens of the text where a model reads a bos in place of one."""

    def text(self, i: int, /) -> Tensor: ...


class Piece(NamedTuple):
    """The part of a document that is in one block."""

    document: int
    text: str


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
    """Text of `max_blocks` evenly spaced blocks (None: all), without special tokens, block by block."""
    return [piece for i in evenly_spaced(len(blocks), max_blocks) for piece in _pieces(blocks, i, tokenizer)]


def loss_per_byte(
    model: Any, tokenizer: "PreTrainedTokenizerBase", pieces: Sequence[Piece], *, length: int, batch_size: int = 8
) -> BytesResult:
    """Loss of a model on the pieces, in blocks of `length` of its own tokens."""
    found = perplexity(model, _OwnTokens.of(pieces, tokenizer, length), batch_size=batch_size).items
    assert found.groups is not None
    assert found.weights is not None
    nats_P = np.bincount(found.groups, np.multiply(found.values, found.weights), len(pieces))
    sizes = [len(piece.text.encode()) for piece in pieces]
    bits = (nats_P / NATS_PER_BIT / sizes).tolist()
    return BytesResult(Items(bits, sizes, [piece.document for piece in pieces], "block"))


def _pieces(blocks: TextBlocks, i: int, tokenizer: "PreTrainedTokenizerBase") -> Iterator[Piece]:
    pairs = zip(blocks.documents(i).tolist(), blocks.text(i).tolist(), strict=True)
    for document, some in groupby(pairs, key=lambda pair: pair[0]):
        text = tokenizer.decode([token for _, token in some], skip_special_tokens=True)
        if text.strip():
            yield Piece(document, text)


@dataclass(frozen=True)
class _OwnTokens:
    """Pieces of text as blocks of a model's own tokens; the number of a piece stands for its document."""

    tokens_BT: Tensor
    positions_BT: Tensor
    pieces_BT: Tensor

    @classmethod
    def of(cls, pieces: Sequence[Piece], tokenizer: "PreTrainedTokenizerBase", length: int) -> "_OwnTokens":
        before = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        if before is None:
            raise CheckpointError("the tokenizer has neither a bos nor an eos token to begin text with: name one")
        ids = [tokenizer(piece.text, add_special_tokens=False)["input_ids"] for piece in pieces]
        rows = list(_rows(ids, before, length))
        rows += [(before, 0, 0)] * (-len(rows) % length)
        columns = torch.tensor(rows).view(-1, length, 3)
        return cls(*columns.unbind(-1))

    def __len__(self) -> int:
        return len(self.tokens_BT)

    def tokens(self, i: int, /) -> Tensor:
        return self.tokens_BT[i]

    def positions(self, i: int, /) -> Tensor:
        return self.positions_BT[i]

    def documents(self, i: int, /) -> Tensor:
        return self.pieces_BT[i]

    def loss_mask(self, i: int, /) -> None:
        return None


def _rows(ids: Sequence[Sequence[int]], before: int, length: int) -> Iterator[tuple[int, int, int]]:
    """Token, position and piece; every token of a piece follows another one in its block.

    At position 0 are tokens that are not predicted: the one before a part of a piece, and the one that fills a block
    with no room for more.
    """
    used = 0
    for piece, tokens in enumerate(ids):
        last, start = before, 0
        while start < len(tokens):
            room = length - used % length
            part = [last, *tokens[start : start + room - 1]]
            yield from ((token, position, piece) for position, token in enumerate(part))
            used, start, last = used + len(part), start + len(part) - 1, part[-1]
