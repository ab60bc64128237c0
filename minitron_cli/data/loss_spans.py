"""Texts of which only some characters are scored and trained on. Knows no row and no token."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from minitron_cli.data.rows import Document


class LossSpans(NamedTuple):
    """One text, and the part of it that is scored and trained on."""

    text: str
    spans: tuple[tuple[int, int], ...]
    """Half-open ranges of characters that are scored, ascending."""
    ends_with_eos: bool
    """Whether an end-of-text token follows and is scored. A chat template ends its turns itself."""
    begins_with_bos: bool = True
    """Whether the tokenizer's bos, if it writes one, stands before the text. A chat template writes it itself."""
    notes: tuple[str, ...] = ()
    """What the text leaves out, such as "answers do not count"; a remark counts equal ones."""


@runtime_checkable
class SpannedContent(Protocol):
    """A document's content that is scored in part. Equal documents have equal content, which is valid JSON."""

    def loss_spans(self, tokenizer: "PreTrainedTokenizerBase", where: str) -> Sequence[LossSpans]:
        """Texts and scored ranges; several if one text cannot hold all that is scored.

        DataError, which begins with `where`, if the tokenizer can't write the content.
        """


def written(
    documents: "Iterable[Document]", tokenizer: "PreTrainedTokenizerBase | None", notes: Counter[str]
) -> "Iterator[Document]":
    """The documents, with content that is scored in part replaced by its texts, one document each.

    Their notes are added to `notes`.
    """
    for document in documents:
        if not isinstance(document.content, SpannedContent):
            yield document
            continue
        assert tokenizer is not None
        for text in document.content.loss_spans(tokenizer, document.where):
            notes.update(text.notes)
            yield document._replace(content=text)
