"""Documents to arrays of token ids, in little memory however long a text is."""

import copy
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from minitron_cli.data.marked import Marked, marked
from minitron_cli.data.rows import Chat, Completion, Document, Ids
from minitron_cli.errors import DataError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

GROUP_CHARACTERS = 1 << 20  # tokenised at once: a tokenizer's result takes many times the space of its text


def encoded(
    documents: Iterable[Document], tokenizer: "PreTrainedTokenizerBase", after_group: Callable[[], None]
) -> Iterator[Ids]:
    """The ids of each document and, behind those of a text, the end-of-text token; no other special token is added.

    A text longer than GROUP_CHARACTERS is tokenised in pieces.
    """
    eos = tokenizer.eos_token_id
    if eos is None:
        raise DataError("the tokenizer has no end-of-text token: name one as eos_token in its tokenizer_config.json")
    encoder = _encoder(tokenizer)
    for is_marked, some in groupby(documents, lambda document: isinstance(document.content, Chat | Completion)):
        if is_marked:
            yield from _marked_ids(some, tokenizer, encoder, eos, after_group)
        else:
            yield from _text_ids(some, encoder, eos, after_group)


def _text_ids(
    documents: Iterable[Document], encoder: "Tokenizer", eos: int, after_group: Callable[[], None]
) -> Iterator[Ids]:
    parts: list[np.ndarray] = []
    for group in _groups(piece for document in documents for piece in _pieces(str(document.content))):
        encodings = encoder.encode_batch_fast([piece.text for piece in group], add_special_tokens=False)
        for piece, encoding in zip(group, encodings, strict=True):
            parts.append(np.array(encoding.ids, np.int64))
            if piece.is_last:
                yield Ids(np.concatenate([*parts, [eos]]))
                parts.clear()
        after_group()


def _marked_ids(
    documents: Iterable[Document],
    tokenizer: "PreTrainedTokenizerBase",
    encoder: "Tokenizer",
    eos: int,
    after_group: Callable[[], None],
) -> Iterator[Ids]:
    for document in documents:
        yield _counted(marked(document, tokenizer), encoder, eos)
        after_group()


def _counted(text: Marked, encoder: "Tokenizer", eos: int) -> Ids:
    """A token counts if its first character does."""
    encoding = encoder.encode(text.text, add_special_tokens=False)
    starts = np.array([start for start, _ in encoding.offsets], np.int64)
    counts = np.zeros(len(starts), bool)
    for start, stop in text.spans:
        counts |= (start <= starts) & (starts < stop)
    tail = [eos] if text.ends_with_eos else []
    return Ids(np.array([*encoding.ids, *tail], np.int64), np.append(counts, [True] * len(tail)).astype(bool))


def checked(documents: Iterable[Document], vocab_size: int) -> Iterator[Ids]:
    """Ready token ids as they are, each known to the tokenizer."""
    for document in documents:
        content = document.content
        assert isinstance(content, Ids)
        for extreme in (content.ids.min(), content.ids.max()):
            if not 0 <= extreme < vocab_size:
                raise DataError(
                    f"{document.where}: token id {extreme} is not one of the tokenizer's {vocab_size:,}; "
                    "use the ids of this model's tokenizer"
                )
        yield content


class _Piece(NamedTuple):
    text: str
    is_last: bool


def _pieces(text: str) -> Iterator[_Piece]:
    """The text, cut behind a line's end where it is longer than GROUP_CHARACTERS."""
    start = 0
    while len(text) - start > GROUP_CHARACTERS:
        end = text.rfind("\n", start, start + GROUP_CHARACTERS) + 1 or start + GROUP_CHARACTERS
        yield _Piece(text[start:end], is_last=False)
        start = end
    yield _Piece(text[start:], is_last=True)


def _groups(pieces: Iterable[_Piece]) -> Iterator[list[_Piece]]:
    """The pieces in lists of about GROUP_CHARACTERS."""
    group, characters = [], 0
    for piece in pieces:
        group.append(piece)
        characters += len(piece.text)
        if characters >= GROUP_CHARACTERS:
            yield group
            group, characters = [], 0
    if group:
        yield group


def _encoder(tokenizer: "PreTrainedTokenizerBase") -> "Tokenizer":
    """A copy that gives every id of a text, whatever padding and truncation the tokenizer's file asks for."""
    encoder = copy.deepcopy(tokenizer.backend_tokenizer)
    encoder.no_padding()
    encoder.no_truncation()
    return encoder
