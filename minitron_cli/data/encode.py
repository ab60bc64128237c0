"""Documents to arrays of token ids, in little memory however long a text is."""

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from minitron_cli.data.rows import Document, Ids
from minitron_cli.data.workers import MapJobs
from minitron_cli.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

GROUP_CHARACTERS = 1 << 20  # tokenised at once: a tokenizer's result takes many times the space of its text


class TextPiece(NamedTuple):
    """Text that is tokenised as one."""

    text: str
    is_last: bool = True
    """Of its document."""
    ends_with_eos: bool = True
    spans: tuple[tuple[int, int], ...] | None = None
    """Half-open ranges of characters that count; None: all do."""


def encoded(
    documents: Iterable[Document],
    tokenizer: "PreTrainedTokenizerBase",
    encode: MapJobs,
    after_group: Callable[[], None],
) -> Iterator[Ids]:
    """The ids of each document and, behind those of a text, the end-of-text token; no other special token is added.

    A text longer than GROUP_CHARACTERS is tokenised in pieces. `encode` maps `Encoder` over groups of pieces.
    """
    parts: list[np.ndarray] = []
    for group in encode(_groups(piece for document in documents for piece in _pieces(document, tokenizer))):
        for ids, is_last in group:
            if is_last and not parts:
                yield ids
                continue
            parts.append(ids.ids)
            if is_last:
                yield Ids(np.concatenate(parts))
                parts.clear()
        after_group()


def encoder_arguments(tokenizer: "PreTrainedTokenizerBase") -> tuple[Any, ...]:
    """What an `Encoder` is made of, here or in another process."""
    if tokenizer.eos_token_id is None:
        raise DataError("the tokenizer has no end-of-text token: name one as eos_token in its tokenizer_config.json")
    return tokenizer.backend_tokenizer.to_str(), tokenizer.eos_token_id


class Encoder:
    """Pieces to ids, every id of a text whatever padding and truncation the tokenizer's file asks for."""

    def __init__(self, tokenizer_json: str, eos: int) -> None:
        from tokenizers import Tokenizer

        self._tokenizer, self._eos = Tokenizer.from_str(tokenizer_json), eos
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    def __call__(self, pieces: list[TextPiece]) -> list[tuple[Ids, bool]]:
        """The ids of each piece, and whether it is its document's last."""
        needs_offsets = any(piece.spans is not None for piece in pieces)
        encode = self._tokenizer.encode_batch if needs_offsets else self._tokenizer.encode_batch_fast
        encodings = encode([piece.text for piece in pieces], add_special_tokens=False)
        return [(self._ids(piece, e), piece.is_last) for piece, e in zip(pieces, encodings, strict=True)]

    def _ids(self, piece: TextPiece, encoding: Any) -> Ids:
        tail = [self._eos] if piece.ends_with_eos else []
        ids = np.array([*encoding.ids, *tail], np.int64)
        return Ids(ids) if piece.spans is None else Ids(ids, token_mask(piece.spans, encoding.offsets, len(tail)))


def token_mask(spans: tuple[tuple[int, int], ...], offsets: list[tuple[int, int]], tail: int) -> np.ndarray:
    """Loss mask of a text's tokens and of `tail` tokens after them, bool [tokens + tail].

    A token of the text, whose characters are `offsets`, is scored if its first character is; the tail always is.
    """
    starts = np.array([start for start, _ in offsets], np.int64)
    mask = np.zeros(len(starts), bool)
    for start, stop in spans:
        mask |= (start <= starts) & (starts < stop)
    return np.append(mask, [True] * tail).astype(bool)


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


def _pieces(document: Document, tokenizer: "PreTrainedTokenizerBase") -> Iterator[TextPiece]:
    content = document.content
    if isinstance(content, str):
        yield from _text_pieces(content)
    else:
        assert not isinstance(content, Ids)
        text, spans, ends_with_eos = content.loss_spans(tokenizer, document.where)
        yield TextPiece(text, True, ends_with_eos, spans)


def _text_pieces(text: str) -> Iterator[TextPiece]:
    """The text, cut behind a line's end where it is longer than GROUP_CHARACTERS."""
    start = 0
    while len(text) - start > GROUP_CHARACTERS:
        end = text.rfind("\n", start, start + GROUP_CHARACTERS) + 1 or start + GROUP_CHARACTERS
        yield TextPiece(text[start:end], is_last=False, ends_with_eos=False)
        start = end
    yield TextPiece(text[start:])


def _groups(pieces: Iterable[TextPiece]) -> Iterator[list[TextPiece]]:
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
