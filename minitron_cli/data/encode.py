"""Documents to arrays of token ids, in bounded memory however long a text is."""

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from minitron_cli.data.document_frame import DocumentFrame
from minitron_cli.data.loss_spans import LossSpans
from minitron_cli.data.rows import Document, Ids
from minitron_cli.data.workers import MapJobs
from minitron_cli.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

GROUP_CHARACTERS = 1 << 20  # tokenized at once; a tokenizer's result takes many times the memory of its text
TURN_CHARACTERS = 1 << 18  # of short documents, tokenized in one turn: a stop request waits for its end


class TextPiece(NamedTuple):
    """Text that is tokenized in one call."""

    text: str
    is_last: bool = True
    """Whether its document ends with it."""
    ends_with_eos: bool = True
    """Whether the end-of-text token follows."""
    begins_with_bos: bool = True
    """Whether the tokenizer's bos stands before it."""
    spans: tuple[tuple[int, int], ...] | None = None
    """Half-open ranges of characters that are scored; None: all."""


def encoded(
    documents: Iterable[Document],
    frame: DocumentFrame,
    encode: MapJobs,
    after_group: Callable[[], None],
) -> Iterator[Ids]:
    """Token ids of each document, with the frame around a text that does not have it; nothing else is added.

    A text longer than GROUP_CHARACTERS is tokenized in pieces. `encode` maps `Encoder` over groups of pieces;
    `after_group` is called after each group.
    """
    parts: list[np.ndarray] = []
    for group in encode(_groups(piece for document in documents for piece in _pieces(document, frame.is_forced))):
        for ids, is_last in group:
            if is_last and not parts:
                yield ids
                continue
            parts.append(ids.ids)
            if is_last:
                yield Ids(np.concatenate(parts))
                parts.clear()
        after_group()


def encoder_arguments(tokenizer: "PreTrainedTokenizerBase", frame: DocumentFrame) -> tuple[Any, ...]:
    """Arguments of `Encoder`, to make it in this process or another. DataError without an end-of-text token."""
    if tokenizer.eos_token_id is None:
        raise DataError("the tokenizer has no end-of-text token: name one as eos_token in its tokenizer_config.json")
    return tokenizer.backend_tokenizer.to_str(), list(frame.before), list(frame.after)


class Encoder:
    """Tokenizes pieces completely: padding and truncation in the tokenizer's file are ignored."""

    def __init__(self, tokenizer_json: str, before: list[int], after: list[int]) -> None:
        from tokenizers import Tokenizer

        self._tokenizer, self._before, self._after = Tokenizer.from_str(tokenizer_json), before, after
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    def __call__(self, pieces: list[TextPiece]) -> list[tuple[Ids, bool]]:
        """Ids of each piece, and whether it is the last of its document."""
        needs_offsets = any(piece.spans is not None for piece in pieces)
        encode = self._tokenizer.encode_batch if needs_offsets else self._tokenizer.encode_batch_fast
        encodings = encode([piece.text for piece in pieces], add_special_tokens=False)
        return [(self._ids(piece, e), piece.is_last) for piece, e in zip(pieces, encodings, strict=True)]

    def _ids(self, piece: TextPiece, encoding: Any) -> Ids:
        text, before, after = encoding.ids, self._before, self._after
        head = before if piece.begins_with_bos and text[: len(before)] != before else []
        tail = after if piece.ends_with_eos and text[-len(after) :] != after else []
        ids = np.array([*head, *text, *tail], np.int64)
        if piece.spans is None:
            return Ids(ids)
        return Ids(ids, token_mask(piece.spans, encoding.offsets, len(head), len(tail)))


def token_mask(spans: tuple[tuple[int, int], ...], offsets: list[tuple[int, int]], head: int, tail: int) -> np.ndarray:
    """Loss mask of a text's tokens and of those before and after them, bool [head + tokens + tail].

    A token of the text, whose characters are `offsets`, is scored if its first character is; the tail always is.
    """
    starts = np.array([start for start, _ in offsets], np.int64)
    mask = np.zeros(len(starts), bool)
    for start, stop in spans:
        mask |= (start <= starts) & (starts < stop)
    return np.concatenate([np.zeros(head, bool), mask, np.ones(tail, bool)])


def checked(documents: Iterable[Document], vocab_size: int) -> Iterator[Ids]:
    """Token ids of documents that are tokenized already. DataError for an id that the tokenizer does not have."""
    for document in documents:
        content = document.content
        assert isinstance(content, Ids)
        for extreme in (content.ids.min(), content.ids.max()):
            if not 0 <= extreme < vocab_size:
                raise DataError(
                    f"{document.where}: token id {extreme} is not one of the vocabulary's {vocab_size:,}; "
                    "use the ids of this model's tokenizer"
                )
        yield content


def _pieces(document: Document, always_begins_with_bos: bool) -> Iterator[TextPiece]:
    content = document.content
    if isinstance(content, str):
        yield from _text_pieces(content)
    else:
        assert isinstance(content, LossSpans)
        begins_with_bos = content.begins_with_bos or always_begins_with_bos
        yield TextPiece(content.text, True, content.ends_with_eos, begins_with_bos, content.spans)


def _text_pieces(text: str) -> Iterator[TextPiece]:
    """The text, split after the end of a line if it is longer than GROUP_CHARACTERS."""
    start = 0
    while len(text) - start > GROUP_CHARACTERS:
        end = text.rfind("\n", start, start + GROUP_CHARACTERS) + 1 or start + GROUP_CHARACTERS
        yield TextPiece(text[start:end], is_last=False, ends_with_eos=False, begins_with_bos=start == 0)
        start = end
    yield TextPiece(text[start:], begins_with_bos=start == 0)


def _groups(pieces: Iterable[TextPiece]) -> Iterator[list[TextPiece]]:
    """Lists of pieces of about TURN_CHARACTERS characters together, and at most about GROUP_CHARACTERS."""
    group, characters = [], 0
    for piece in pieces:
        group.append(piece)
        characters += len(piece.text)
        if characters >= min(GROUP_CHARACTERS, TURN_CHARACTERS):
            yield group
            group, characters = [], 0
    if group:
        yield group
