"""Rows of prompts and their completions."""

from typing import TYPE_CHECKING, Literal, NamedTuple

from minitron_cli.data.formats.base import BaseFormat
from minitron_cli.data.loss_spans import LossSpans
from minitron_cli.data.rows import Row, text_value

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Completion(NamedTuple):
    """A prompt and the text that follows it, which alone is scored."""

    prompt: str
    completion: str

    def loss_spans(self, tokenizer: "PreTrainedTokenizerBase", where: str) -> LossSpans:
        """Both texts in a row; the completion and the end-of-text token after it are scored."""
        text = self.prompt + self.completion
        return LossSpans(text, ((len(self.prompt), len(text)),), ends_with_eos=True)


class CompletionFormat(BaseFormat):
    """A prompt and its completion, which alone is scored and trained on."""

    kind: Literal["completion"] = "completion"
    column: str = "completion"
    """Column that holds the completion."""
    prompt_column: str = "prompt"
    """Column that holds the prompt."""

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.prompt_column, self.column)

    def content(self, row: Row) -> Completion | None:
        """Prompt and completion of the row; None if the completion is empty."""
        content = Completion(*(text_value(row, i, column) for i, column in enumerate(self.columns)))
        return content if content.completion else None
