"""What a block decodes to, for readers: runs of text that count or do not, special tokens, and document borders."""

from collections.abc import Callable, Iterator
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

import torch

from minitron_cli.data.batches import is_predicted
from minitron_cli.data.pack import Blocks

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what the first bytes of a character decode to


class Piece(NamedTuple):
    """Neighboring tokens of a block that are alike."""

    text: str
    tokens: int
    """Number of tokens."""
    counts: bool
    """Whether they are predicted: trained on and measured. If not, they are only context."""
    special: bool
    """Whether they are special tokens, such as a bos or the end of a text."""
    document: int
    """Number of their document, from 0."""


def pieces(blocks: Blocks, i: int, tokenizer: "PreTrainedTokenizerBase | None") -> list[Piece]:
    """Pieces of block i in order, whose texts joined are the decoded block. Without a tokenizer, its ids."""
    ids = blocks.tokens(i).tolist()
    special = _special_ids(tokenizer)
    kinds = zip(blocks.documents(i).tolist(), _counts(blocks, i), (token in special for token in ids), strict=True)
    runs = [(kind, sum(1 for _ in run)) for kind, run in groupby(kinds)]
    texts = _texts(ids, [length for _, length in runs], _decoder(tokenizer))
    return [
        Piece(text, length, counts, is_special, document)
        for text, ((document, counts, is_special), length) in zip(texts, runs, strict=True)
    ]


def _counts(blocks: Blocks, i: int) -> list[bool]:
    """Whether each token of block i is predicted; its first one is not."""
    mask_T = blocks.loss_mask(i)
    found = is_predicted(blocks.positions(i)[None], None if mask_T is None else mask_T[None])[0]
    return torch.cat([torch.zeros(1, dtype=torch.bool), found]).tolist()


def _special_ids(tokenizer: "PreTrainedTokenizerBase | None") -> set[int]:
    if tokenizer is None:
        return set()
    added = (number for number, token in tokenizer.added_tokens_decoder.items() if token.special)
    return {*tokenizer.all_special_ids, *added}


def _decoder(tokenizer: "PreTrainedTokenizerBase | None") -> Callable[[list[int]], str]:
    if tokenizer is None:
        return lambda ids: "".join(f"{number} " for number in ids)
    return lambda ids: str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _texts(ids: list[int], lengths: list[int], decode: Callable[[list[int]], str]) -> Iterator[str]:
    """Text of each run. It is taken from that of the whole block: a run by itself may lose its leading space, or begin
    inside a character."""
    whole, start, end = decode(ids), 0, 0
    for length in lengths:
        end += length
        stop = len(whole) if end == len(ids) else max(start, len(decode(ids[:end]).rstrip(UNFINISHED)))
        yield whole[start:stop]
        start = stop
