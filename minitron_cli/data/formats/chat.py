"""Rows of conversations, written by the tokenizer's chat template."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from minitron_cli.data.formats.base import BaseFormat
from minitron_cli.data.loss_spans import LossSpans
from minitron_cli.data.rows import Row
from minitron_cli.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, Any]  # role, content and whatever else the template reads


class Chat(NamedTuple):
    """A conversation, of which the assistant's messages are scored."""

    messages: tuple[Message, ...]

    def loss_spans(self, tokenizer: "PreTrainedTokenizerBase", where: str) -> LossSpans:
        """The conversation as the chat template writes it. An answer is what a message of the assistant adds to it.

        A template may rewrite earlier messages once later ones follow (Qwen 3 drops their thoughts). Then an answer is
        scored only if the whole text still begins with it. DataError unless the last answer is scored.
        """
        if not getattr(tokenizer, "chat_template", None):
            raise DataError(f"{where}: the tokenizer has no chat template: use the tokenizer of a chat model")
        whole, spans = _written(self.messages, tokenizer, where), []
        for i in (i for i, message in enumerate(self.messages) if _is_answer(message)):
            asked = _written(self.messages[:i], tokenizer, where, asks=True)
            answered = _written(self.messages[: i + 1], tokenizer, where)
            if is_found := whole.startswith(answered) and answered.startswith(asked):
                spans.append((len(asked), len(answered)))
        if not is_found:
            raise DataError(
                f"{where}: the chat template does not write the last answer after the text that asks for it, "
                "so the tokens to score are unknown; give prompt and completion instead (format: completion)"
            )
        return LossSpans(whole, tuple(spans), ends_with_eos=False, begins_with_bos=False)


class ChatFormat(BaseFormat):
    """A list of messages (role, content), of which the assistant's are scored and trained on."""

    kind: Literal["chat"] = "chat"
    column: str = "messages"
    """Column that holds the list of messages."""

    def content(self, row: Row) -> Chat | None:
        """Conversation of the row; None if the assistant says nothing in it."""
        messages = row.values[0]
        messages = list(messages) if hasattr(messages, "__iter__") and not isinstance(messages, str | dict) else []
        if not messages or not all(isinstance(m, dict) and isinstance(m.get("role"), str) for m in messages):
            raise DataError(
                f"{row.where}: column {self.column!r} is not a conversation; "
                "write a list of messages such as {'role': 'user', 'content': ...}"
            )
        return Chat(tuple(messages)) if any(_is_answer(message) for message in messages) else None


def _is_answer(message: Message) -> bool:
    return bool(message["role"] == "assistant")


def _written(messages: Sequence[Message], tokenizer: "PreTrainedTokenizerBase", where: str, asks: bool = False) -> str:
    """Text of the messages; with `asks`, followed by what the template writes before an answer."""
    from jinja2 import TemplateError

    if not messages:
        return ""
    try:
        text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=asks)
    except (TemplateError, TypeError, KeyError, ValueError) as e:
        raise DataError(f"{where}: the chat template refuses the conversation ({e}); repair or drop the row") from e
    assert isinstance(text, str)
    return text
