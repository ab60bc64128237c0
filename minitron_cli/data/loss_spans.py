"""Texts of which only some characters are scored and trained on. Knows no row and no token."""

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class LossSpans(NamedTuple):
    """A document as one text, and the part of it that is scored and trained on."""

    text: str
    spans: tuple[tuple[int, int], ...]
    """Half-open ranges of characters that are scored, ascending."""
    ends_with_eos: bool
    """Whether an end-of-text token follows and is scored. A chat template ends its turns itself."""
    begins_with_bos: bool = True
    """Whether the tokenizer's bos, if it writes one, stands before the text. A chat template writes it itself."""


class SpannedContent(Protocol):
    """A document's content that is scored in part. Equal documents have equal content, which is valid JSON."""

    def loss_spans(self, tokenizer: "PreTrainedTokenizerBase", where: str) -> LossSpans:
        """Text and scored ranges. DataError, which begins with `where`, if the tokenizer can't write the content."""
