"""Rows of prompts and their completions."""

from typing import TYPE_CHECKING, Literal, NamedTuple

from minitron_cli.data.conversation import Conversation
from minitron_cli.data.formats.conversations import ConversationFormat
from minitron_cli.data.loss_spans import LossSpans
from minitron_cli.data.messages import messages_of
from minitron_cli.data.rows import Row, text_value, value_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Completion(NamedTuple):
    """A prompt and the text that follows it, which alone is scored."""

    prompt: str
    completion: str

    def loss_spans(self, tokenizer: "PreTrainedTokenizerBase", where: str) -> list[LossSpans]:
        """Both texts in a row; the completion and the end-of-text token after it are scored."""
        text = self.prompt + self.completion
        return [LossSpans(text, ((len(self.prompt), len(text)),), ends_with_eos=True)]


class CompletionFormat(ConversationFormat):
    """A prompt and its completion, which alone is scored and trained on.

    Both may be lists of messages, which are read as one conversation.
    """

    kind: Literal["completion"] = "completion"
    column: str = "completion"
    """Column that holds the completion."""
    prompt_column: str = "prompt"
    """Column that holds the prompt."""

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.prompt_column, self.column)

    def content(self, row: Row) -> Completion | Conversation | None:
        """Prompt and completion of the row; None if the completion is empty."""
        if isinstance(value_of(row, 1), list):
            return self._talk(row)
        content = Completion(*(text_value(row, i, column) for i, column in enumerate(self.columns)))
        return content if content.completion else None

    def _talk(self, row: Row) -> Conversation | None:
        """Conversation of a prompt and a completion that are lists of messages; only the completion's count."""
        prompt, completion = (messages_of(row.values[i], column, row.where) for i, column in enumerate(self.columns))
        return self.conversation((*({**message, "weight": 0} for message in prompt), *completion), row)
