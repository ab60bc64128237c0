"""Documents to blocks of tokens. A corpus is tokenised once, into a file that later runs map into memory.

The documents of a split follow each other, each text ended by the end-of-text token. Block i is tokens i*T to (i+1)*T
of this sequence; what is left at its end is dropped.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from minitron_cli import io, progress
from minitron_cli.data import token_file
from minitron_cli.data.encode import checked, encoded
from minitron_cli.data.rows import Document, Ids
from minitron_cli.data.sources import Corpus, DataConfig, Source, TokenIds
from minitron_cli.data.token_file import TokenFile
from minitron_cli.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# T token of a block

FORMAT = 1  # raise it when the same text and tokenizer give another token file

EVERYTHING = (0.0, 1.0)

SplitName = Literal["train", "validation"]


class Blocks:
    """Blocks of `sequence_length` tokens, by index."""

    def __init__(self, file: TokenFile, sequence_length: int) -> None:
        self.sequence_length = sequence_length
        self.fingerprint = io.digest([file.fingerprint, sequence_length])
        self._file = file

    def __len__(self) -> int:
        return len(self._file.tokens) // self.sequence_length

    def tokens(self, i: int) -> Tensor:
        """The token ids of block i, int64 [T]."""
        return torch.from_numpy(self._file.tokens[self._span(i)].astype(np.int64))

    def positions(self, i: int) -> Tensor:
        """How far each token is from the start of its document, or of the block if that is later; int64 [T]."""
        span, starts = self._span(i), self._file.starts
        first, stop = np.searchsorted(starts, [span.start, span.stop])
        origin_T = np.zeros(self.sequence_length, np.int64)
        origin_T[starts[first:stop] - span.start] = starts[first:stop] - span.start
        return torch.from_numpy(np.arange(self.sequence_length) - np.maximum.accumulate(origin_T))

    def documents(self, i: int) -> Tensor:
        """Which document, by its number, each token is of; int64 [T]."""
        span = self._span(i)
        return torch.from_numpy(np.searchsorted(self._file.starts, np.arange(span.start, span.stop), side="right") - 1)

    def counts(self, i: int) -> Tensor | None:
        """Which tokens of block i count, bool [T]; None if all do."""
        if self._file.counts is None:
            return None
        return torch.from_numpy(np.array(self._file.counts[self._span(i)]))

    def _span(self, i: int) -> slice:
        if not 0 <= i < len(self):
            raise IndexError(f"block {i} of {len(self)}")
        return slice(i * self.sequence_length, (i + 1) * self.sequence_length)


def prepare(
    config: DataConfig,
    split: SplitName,
    tokenizer: "PreTrainedTokenizerBase",
    tokenizer_key: str,
    cache_dir: Path,
) -> Blocks:
    """The blocks of one split, tokenised on the first call and found in `cache_dir` on later ones.

    What is found is used if it was made of the same content, by the same tokenizer (`tokenizer_key` is a hash of it)
    and under the same rules, and is whole. Processes that call at the same time all do the work and end with the same
    file. DataError if a source is broken or there are too few tokens for one block.
    """
    part = _open(config, split)
    key = io.digest([FORMAT, tokenizer_key, part.identity()])
    directory = cache_dir / key[:16]
    file = token_file.find(directory, key)
    if file is None:
        vocab_size = 1 + max(tokenizer.get_vocab().values())
        file = token_file.create(
            directory, key, vocab_size, _token_arrays(part, tokenizer, vocab_size), part.has_counts
        )
    blocks = Blocks(file, config.sequence_length)
    if not len(blocks):
        raise DataError(
            f"{split} data: {len(file.tokens):,} tokens are fewer than one block of {config.sequence_length:,}; "
            "add text or lower data.sequence_length"
        )
    return blocks


@dataclass(frozen=True)
class _Split:
    """The documents of some sources whose hash, as a number from 0 to 1, lies in a half-open range."""

    name: SplitName
    sources: tuple[Source, ...]
    corpora: tuple[Corpus, ...]
    held: tuple[float, float]

    def identity(self) -> list[object]:
        weights = [source.weight for source in self.sources]
        return [[corpus.identity for corpus in self.corpora], weights, self.held]

    @property
    def has_counts(self) -> bool:
        return any(source.has_counts for source in self.sources)

    def holds(self, document: Document) -> bool:
        return self.held == EVERYTHING or self.held[0] <= _hash_fraction(document) < self.held[1]


def _open(config: DataConfig, split: SplitName) -> _Split:
    if config.validation:
        sources, held = config.validation if split == "validation" else config.sources, EVERYTHING
    else:
        border = config.validation_fraction
        sources, held = config.sources, (0.0, border) if split == "validation" else (border, 1.0)
    return _Split(split, sources, tuple(source.open() for source in sources), held)


def _hash_fraction(document: Document) -> float:
    """A number in [0, 1) that equal documents share, wherever they come from."""
    content = document.content
    if isinstance(content, str):
        data = content.encode()
    else:
        data = content.ids.astype("<i8").tobytes() if isinstance(content, Ids) else io.canonical_json(content)
    return (int.from_bytes(blake2b(data, digest_size=8).digest(), "little") >> 11) / 2**53


def _token_arrays(part: _Split, tokenizer: "PreTrainedTokenizerBase", vocab_size: int) -> Iterator[Ids]:
    """The ids of each document, in the order of the token file. DataError if there is none, or the sources change."""
    is_empty = True
    total = sum(corpus.size_bytes for corpus in part.corpora)
    with progress.track(f"tokenise {part.name} data", total=total, unit="bytes") as step:
        for ids in _mixture(part, [_stream(part, i, tokenizer, vocab_size, step) for i in range(len(part.sources))]):
            is_empty = False
            yield ids
    if is_empty:
        raise DataError(
            f"{part.name} data: data.validation_fraction holds out whole documents and leaves none here; "
            "name data.validation sources, or cut the text into more documents"
        )
    if [source.open().identity for source in part.sources] != [corpus.identity for corpus in part.corpora]:
        raise DataError(f"{part.name} data: changed while it was read; run the command again")


def _stream(
    part: _Split, i: int, tokenizer: "PreTrainedTokenizerBase", vocab_size: int, step: progress.Step
) -> Iterator[Ids]:
    """The ids of each document of source i that the split holds."""
    documents = filter(part.holds, _read(part.corpora[i], step))
    if isinstance(part.sources[i], TokenIds):
        return checked(documents, vocab_size)
    return encoded(documents, tokenizer, after_group=partial(step, 0))


def _read(corpus: Corpus, step: progress.Step) -> Iterator[Document]:
    is_empty = True
    for document in corpus.documents:
        is_empty = False
        step(document.size_bytes)
        yield document
    if is_empty:
        raise DataError(f"{corpus.label}: holds only empty documents; drop it from the sources or write it again")


def _mixture(part: _Split, streams: list[Iterator[Ids]]) -> Iterator[Ids]:
    """One document after the other, always of the source that is furthest behind its share of the tokens.

    Without weights, all of the first source, then all of the next.
    """
    weights = [source.weight for source in part.sources if source.weight]
    if not weights:
        yield from chain(*streams)
        return
    taken = [0] * len(streams)
    while True:
        turn = min(range(len(streams)), key=lambda i: taken[i] / weights[i])
        ids = next(streams[turn], None)
        if ids is None:
            break
        taken[turn] += len(ids.ids)
        yield ids
    if len(streams) > 1:
        label = part.corpora[turn].label
        progress.say(
            f"{part.name} data end with {label}, used up after {taken[turn]:,} tokens; weights keep the shares"
        )
