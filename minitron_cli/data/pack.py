"""Documents to blocks of tokens. A corpus is tokenized once, into a file that later runs map into memory.

The documents of a split are concatenated, each text between what its tokenizer writes before it, such as a bos, and the
end-of-text token. Block i is tokens i*T to (i+1)*T of this sequence; an incomplete last block and those without a token
to predict are left out.

A block that begins inside a document begins as the document does, in place of as many of its tokens: a model trained
with a bos is far worse without one (docs/data.md).
"""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from minitron_cli import canonical_json, process_rank, progress
from minitron_cli.data import token_file
from minitron_cli.data.document_frame import DocumentFrame
from minitron_cli.data.encode import Encoder, checked, encoded, encoder_arguments
from minitron_cli.data.loss_spans import written
from minitron_cli.data.predicted_blocks import continued, predicted_blocks
from minitron_cli.data.rows import Document, Ids
from minitron_cli.data.sources import DataConfig, TokenIds
from minitron_cli.data.split import Split, SplitName
from minitron_cli.data.template_process import DAY
from minitron_cli.data.token_file import ReadPosition, TokenFile
from minitron_cli.data.workers import MapJobs, mapping, processes_for
from minitron_cli.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# T token of a block

FORMAT = 5  # increase it when the same text and tokenizer give another token file
WAIT_SECONDS = 0.2


class Blocks:
    """Blocks of `sequence_length` tokens, by index; each has a token to predict. IndexError for an unknown index.

    `before` is what a block begins with if it begins inside a document that begins with it.
    """

    def __init__(self, file: TokenFile, sequence_length: int, before: tuple[int, ...] = ()) -> None:
        self.sequence_length, self.before = sequence_length, before
        self.file, self._total = file, len(file.tokens) // sequence_length
        self._numbers = predicted_blocks(file, sequence_length, before)
        left_out = [self.left_out] if self.left_out else []
        self.fingerprint = canonical_json.digest([file.fingerprint, sequence_length, before, *left_out])

    def __len__(self) -> int:
        return self._total if self._numbers is None else len(self._numbers)

    @property
    def left_out(self) -> int:
        """Number of complete blocks that are left out because nothing in them is predicted."""
        return self._total - len(self)

    def tokens(self, i: int) -> Tensor:
        """Token ids of block i as a model reads them, int64 [T]."""
        tokens_T = self.text(i)
        if self._is_continued(i):
            tokens_T[: len(self.before)] = torch.tensor(self.before)
        return tokens_T

    def text(self, i: int) -> Tensor:
        """Token ids of block i without what is put before it, int64 [T]."""
        return torch.from_numpy(self.file.tokens[self._span(i)].astype(np.int64))

    def largest_id(self) -> int:
        """Largest token id in the file; reads all of it."""
        return int(self.file.tokens.max())

    def positions(self, i: int) -> Tensor:
        """Position of each token in its document, or in the block if the document starts before it; int64 [T]."""
        span, starts = self._span(i), self.file.starts
        first, stop = np.searchsorted(starts, [span.start, span.stop])
        origin_T = np.zeros(self.sequence_length, np.int64)
        origin_T[starts[first:stop] - span.start] = starts[first:stop] - span.start
        return torch.from_numpy(np.arange(self.sequence_length) - np.maximum.accumulate(origin_T))

    def documents(self, i: int) -> Tensor:
        """Number of each token's document, int64 [T]."""
        span = self._span(i)
        return torch.from_numpy(np.searchsorted(self.file.starts, np.arange(span.start, span.stop), side="right") - 1)

    def loss_mask(self, i: int) -> Tensor | None:
        """Whether each token of block i is scored, bool [T]; None if all are.

        What is put before a block is not, nor is the first token after it: what it continues is in another block.
        """
        span, mask, is_continued = self._span(i), self.file.loss_mask, self._is_continued(i)
        if mask is None and not is_continued:
            return None
        mask_T = np.ones(self.sequence_length, bool) if mask is None else np.array(mask[span])
        if is_continued:
            mask_T[: len(self.before) + 1] = False
        return torch.from_numpy(mask_T)

    def text_mask(self, i: int) -> Tensor | None:
        """Whether each token of the text of block i is scored, whatever is put before it, bool [T]; None if all are."""
        mask = self.file.loss_mask
        return None if mask is None else torch.from_numpy(np.array(mask[self._span(i)]))

    @property
    def has_loss_mask(self) -> bool:
        """Whether a block may have a loss mask."""
        return self.file.loss_mask is not None or bool(self.before)

    def text_tokens(self) -> Tensor:
        """Token ids of all complete blocks in a row, without what is put before a block, int64 [blocks * T]."""
        return torch.from_numpy(self.file.tokens[: self._total * self.sequence_length].astype(np.int64))

    def _is_continued(self, i: int) -> bool:
        start_B = np.array([self._span(i).start])
        return bool(continued(self.file, start_B, self.sequence_length, self.before)[0])

    def _span(self, i: int) -> slice:
        if not 0 <= i < len(self):
            raise IndexError(f"block {i} of {len(self)}")
        number = i if self._numbers is None else int(self._numbers[i])
        return slice(number * self.sequence_length, (number + 1) * self.sequence_length)


def prepare(
    config: DataConfig,
    name: SplitName,
    tokenizer: "PreTrainedTokenizerBase | None",
    tokenizer_key: str,
    cache_dir: Path,
    vocab_size: int | None = None,
) -> Blocks:
    """Blocks of one split, tokenized on the first call and read from `cache_dir` on later ones.

    A cached file is used if it is undamaged and was made from the same content, by the same tokenizer (`tokenizer_key`
    is its hash) and under the same rules. Token ids need no tokenizer; without one they are below `vocab_size`. In a
    distributed run the first process does the work and the others wait.
    DataError if a source is broken, there are too few tokens for one block, or nothing in the blocks is predicted.
    """
    split, frame = Split.open(config, name), _frame(tokenizer, config)
    key = _key(split, frame, tokenizer, tokenizer_key)
    directory = cache_dir / key[:16]
    file = token_file.find(directory, key)
    if file is None:
        file = (
            _create(directory, key, split, tokenizer, frame, vocab_size)
            if process_rank.is_first_process()
            else _wait_for(directory, key)
        )
    if len(file.tokens) < config.sequence_length:
        raise split.too_few(len(file.tokens), config.sequence_length)
    return _with_predictions(Blocks(file, config.sequence_length, frame.before), name, split.has_loss_mask)


def identity(
    config: DataConfig, name: SplitName, tokenizer: "PreTrainedTokenizerBase | None", tokenizer_key: str
) -> str:
    """Hash that changes whenever the blocks of a split may change. Tokenizes nothing; DataError for a missing source.

    Not the fingerprint of the blocks, which is known once they are there.
    """
    key = _key(Split.open(config, name), _frame(tokenizer, config), tokenizer, tokenizer_key)
    return canonical_json.digest([key, config.sequence_length])


def _frame(tokenizer: "PreTrainedTokenizerBase | None", config: DataConfig) -> DocumentFrame:
    return DocumentFrame.of(tokenizer, config.bos) if tokenizer else DocumentFrame.without_tokenizer(config.bos)


def _key(split: Split, frame: DocumentFrame, tokenizer: "PreTrainedTokenizerBase | None", tokenizer_key: str) -> str:
    template = [tokenizer.chat_template] if tokenizer and split.has_loss_mask else []
    if "strftime_now" in str(template):
        template.append(f"written on {DAY:%Y-%m-%d}")  # before, on the day of tokenization
    return canonical_json.digest([FORMAT, tokenizer_key, split.identity(), frame, *template])


def _with_predictions(blocks: Blocks, name: SplitName, has_loss_mask: bool) -> Blocks:
    """The blocks; a remark counts those that are left out. DataError if none is left."""
    total, kind = len(blocks) + blocks.left_out, "answer" if has_loss_mask else "token to predict"
    if not len(blocks):
        advice = (
            "add rows with answers or completions, or lower data.sequence_length so that the last ones fill a block"
            if has_loss_mask
            else "every document is one token long: give longer documents"
        )
        raise DataError(f"{name} data: none of the {total:,} blocks holds a token to predict: {advice}")
    if blocks.left_out:
        progress.say(f"{name} data: {blocks.left_out:,} of {total:,} blocks hold no {kind} and are not used")
    return blocks


def _create(
    directory: Path,
    key: str,
    split: Split,
    tokenizer: "PreTrainedTokenizerBase | None",
    frame: DocumentFrame,
    vocab_size: int | None,
) -> TokenFile:
    vocab_size = 1 + max(tokenizer.get_vocab().values()) if tokenizer else vocab_size
    assert vocab_size
    with ExitStack() as opened:
        documents = partial(_documents, split, tokenizer, frame, vocab_size, opened)
        has_loss_mask = split.has_loss_mask or len(frame.before) > 1
        return token_file.create(directory, key, vocab_size, documents, has_loss_mask, {"frame": frame._asdict()})


def _wait_for(directory: Path, key: str) -> TokenFile:
    """Wait until the first process has written the file. If it fails, the launcher ends this process."""
    while (file := token_file.find(directory, key)) is None:
        progress.raise_if_stopped()
        time.sleep(WAIT_SECONDS)
    return file


def _documents(
    split: Split,
    tokenizer: "PreTrainedTokenizerBase | None",
    frame: DocumentFrame,
    vocab_size: int,
    opened: ExitStack,
    after: ReadPosition | None,
) -> Iterator[tuple[Ids, ReadPosition]]:
    """Ids of each document in the order of the token file, and the position after it.

    Documents before the position `after` are read and not encoded. DataError if there is no document, or if the sources
    change meanwhile.
    """
    place = after or [[0, 0] for _ in split.sources]
    step = opened.enter_context(progress.track(f"tokenize {split.name} data", total=split.size_bytes, unit="bytes"))
    encode = None
    if not all(isinstance(source, TokenIds) for source in split.sources):
        assert tokenizer
        processes = processes_for(split.size_bytes)
        encode = opened.enter_context(mapping(Encoder, encoder_arguments(tokenizer, frame), processes))
    notes = Counter[str]()
    texts = [written(split.documents(i, step), tokenizer, notes) for i in range(len(split.sources))]
    streams = [
        _stream(split, i, texts[i], frame, vocab_size, step, encode, skip=documents)
        for i, (documents, _) in enumerate(place)
    ]
    for turn, ids in _mixture(split, streams, [tokens for _, tokens in place]):
        place = [[n + (i == turn), tokens + (i == turn) * len(ids.ids)] for i, (n, tokens) in enumerate(place)]
        yield frame.unscored(ids), place
    if not any(tokens for _, tokens in place):
        raise split.nothing()
    split.check_unchanged()
    for note, count in notes.items():
        progress.say(f"{split.name} data: {count:,} documents {note}")


def _stream(
    split: Split,
    i: int,
    documents: Iterator[Document],
    frame: DocumentFrame,
    vocab_size: int,
    step: progress.Step,
    encode: MapJobs | None,
    skip: int,
) -> Iterator[Ids]:
    """Ids of each document of source i in the split, without the first `skip`."""
    rest = islice(documents, skip, None)
    if isinstance(split.sources[i], TokenIds):
        ready = checked(rest, vocab_size)
        return map(frame.begin, ready) if frame.is_forced else ready
    assert encode
    return encoded(rest, frame, encode, after_group=partial(step, 0))


def _mixture(split: Split, streams: list[Iterator[Ids]], taken: list[int]) -> Iterator[tuple[int, Ids]]:
    """(source, document's ids) in the order of the mixture: always from the source that is furthest behind its share.

    Without weights, all documents of the first source, then all of the next. `taken` counts the tokens of each source
    that came before. A source without documents in the split, because few are held out, has no share.
    """
    weights = [weight for weight in split.weights if weight]
    if not weights:
        yield from ((i, ids) for i, stream in enumerate(streams) for ids in stream)
        return
    running = list(range(len(streams)))
    while running:
        turn = min(running, key=lambda i: taken[i] / weights[i])
        ids, label = next(streams[turn], None), split.corpora[turn].label
        if ids is not None:
            taken[turn] += len(ids.ids)
            yield turn, ids
        elif taken[turn]:
            if len(streams) > 1:
                progress.say(
                    f"{split.name} data end with {label}, exhausted after {taken[turn]:,} tokens; shares are kept"
                )
            return
        else:
            running.remove(turn)
            progress.say(f"{split.name} data contain nothing of {label}")
