"""Conversations and completions as one text each, and which of its characters count. Knows no ids."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from minitron_cli.data.rows import Chat, Completion, Document
from minitron_cli.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Marked(NamedTuple):
    text: str
    spans: tuple[tuple[int, int], ...]
    """Half-open ranges of characters that count, ascending."""
    ends_with_eos: bool
    """Whether the end-of-text token follows, and counts: a chat template ends its turns itself."""


def marked(document: Document, tokenizer: "PreTrainedTokenizerBase") -> Marked:
    """A chat as the tokenizer's template writes it, or a prompt and its completion."""
    content = document.content
    if isinstance(content, Completion):
        text = content.prompt + content.completion
        return Marked(text, ((len(content.prompt), len(text)),), True)
    assert isinstance(content, Chat)
    if not getattr(tokenizer, "chat_template", None):
        raise DataError(f"{document.where}: the tokenizer has no chat template: use the tokenizer of a chat model")
    return _marked_chat(content.messages, tokenizer, document.where)


def _marked_chat(messages: Sequence[dict[str, Any]], tokenizer: "PreTrainedTokenizerBase", where: str) -> Marked:
    """An answer is what a turn of the assistant adds to the text that asks for it.

    A template may write earlier turns in another way once later ones follow (Qwen 3 drops their thoughts); then only
    answers that the whole text still begins with in that form can be found, and the last one must be among them.
    """
    whole, spans = _written(messages, tokenizer, where), []
    answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    for i in answers:
        asked = _written(messages[:i], tokenizer, where, asks=True)
        answered = _written(messages[: i + 1], tokenizer, where)
        if is_found := whole.startswith(answered) and answered.startswith(asked):
            spans.append((len(asked), len(answered)))
    if not is_found:
        raise DataError(
            f"{where}: the chat template does not write the last answer behind the text that asks for it, "
            "so what counts cannot be told; give prompt and completion instead (format: completion)"
        )
    return Marked(whole, tuple(spans), False)


def _written(
    messages: Sequence[dict[str, Any]], tokenizer: "PreTrainedTokenizerBase", where: str, asks: bool = False
) -> str:
    from jinja2 import TemplateError

    if not messages:
        return ""
    try:
        text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=asks)
    except (TemplateError, TypeError, KeyError, ValueError) as e:
        raise DataError(f"{where}: the chat template refuses the conversation ({e}); repair or drop the row") from e
    assert isinstance(text, str)
    return text
