"""Conversations and the answers in them, written by a tokenizer's chat template. Knows no row and no file."""

import json
from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from minitron_cli.data.chat_template import ChatTemplate, Form, TemplateFailure
from minitron_cli.data.loss_spans import LossSpans
from minitron_cli.data.messages import WEIGHTS, Message, is_scored, json_of
from minitron_cli.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SPOKEN = ("tool_calls", "function_call", "reasoning_content", "reasoning", "thinking")
"""Fields beside `content` that hold what the assistant says."""
THOUGHTS = ("reasoning_content", "reasoning", "thinking")  # transformers gives each under the first and the last name
REWRITTEN = (
    "have earlier answers that the chat template rewrites once others follow: they are scored in texts of their own"
)
EARLIER = "have earlier answers that do not count, because the chat template does not write them as it asks for them"
RESERVED = ("messages", "conversations", "tools", "chat_template", "add_generation_prompt", "continue_final_message")


class Conversation(NamedTuple):
    """Messages, of which the assistant's are scored."""

    messages: tuple[Message, ...]
    tools: tuple[Any, ...] = ()
    """Functions that the assistant may call, as JSON schemas."""
    variables: Mapping[str, Any] = {}
    """Further variables of the template, such as enable_thinking."""
    others: tuple[str, ...] = ()
    """Columns of the row that are not read."""

    def loss_spans(self, tokenizer: "PreTrainedTokenizerBase", where: str) -> list[LossSpans]:
        """The conversation as the chat template writes it. An answer is what a message of the assistant adds to it.

        A template may rewrite earlier messages once later ones follow (Qwen 3 drops their thoughts). Then an answer
        that the whole text does not begin with is scored in a text of its own, which ends with it: the text that the
        model sees when it gives the answer. DataError unless the last answer is scored.
        """
        template = _template(tokenizer, bool(self.tools), where)
        try:
            return _spans(self._prepared(template, where), self.scored(where), template, where)
        except TemplateFailure as e:
            raise DataError(
                f"{where}: the chat template refuses the conversation ({e}); repair or drop the row"
            ) from None

    def scored(self, where: str) -> list[int]:
        """Numbers of the messages that count. DataError for a weight that is neither 0 nor 1."""
        return [i for i, message in enumerate(self.messages) if is_scored(message, where)]

    def _prepared(self, template: ChatTemplate, where: str) -> "Conversation":
        """The conversation in the form that the template can write. DataError if there is none."""
        change = partial(_for_template, template=template, where=where)
        return self._replace(messages=tuple(map(change, self.messages)))


def _spans(talk: Conversation, answers: list[int], template: ChatTemplate, where: str) -> list[LossSpans]:
    """Texts that together score the messages of these numbers, beginning with the whole conversation."""
    whole = len(talk.messages)
    renders = list(dict.fromkeys([(whole, False), *(r for i in answers for r in ((i, True), (i + 1, False)) if r[0])]))
    texts = template.write(talk.messages, renders, talk.tools or None, dict(talk.variables))
    text_of = {(0, True): "", **{r: _utf8(text, where) for r, text in zip(renders, texts, strict=True)}}
    notes, spans, stop = tuple(_notes(talk, template)), list[LossSpans](), whole
    while answers:
        found = [i for i in answers if _is_prefix(text_of[i, True], text_of[i + 1, False], text_of[stop, False])]
        if found:
            ranges = tuple((len(text_of[i, True]), len(text_of[i + 1, False])) for i in found)
            spans.append(
                LossSpans(text_of[stop, False], ranges, ends_with_eos=False, begins_with_bos=False, notes=notes)
            )
            notes = ()
        elif stop == answers[-1] + 1:
            _require_spans(spans, where)
            notes, found = (*notes, EARLIER), answers[-1:]
        answers = [i for i in answers if i not in found]
        stop = answers[-1] + 1 if answers else stop
    notes = (*notes, REWRITTEN) if len(spans) > 1 else notes
    return [*spans[:-1], spans[-1]._replace(notes=spans[-1].notes + notes)]


def _require_spans(spans: list[LossSpans], where: str) -> None:
    if not spans:
        raise DataError(
            f"{where}: the chat template does not write the last answer after the text that asks for it, "
            "so the tokens to score are unknown; give prompt and completion instead (format: completion)"
        )


def _is_prefix(asked: str, answered: str, whole: str) -> bool:
    return whole.startswith(answered) and answered.startswith(asked)


def _notes(talk: Conversation, template: ChatTemplate) -> Iterator[str]:
    """What the text does not hold, although the row does."""
    if talk.tools and not template.reads("tools"):
        yield "have tools, which the chat template does not write"
    for name in SPOKEN:
        if any(m.get(name) for m in talk.messages) and not _is_written(name, template):
            yield f"have messages with {name}, which the chat template does not write"
    for name in talk.others:
        if template.reads(name):
            yield f"have a column {name!r}, which is not passed to the chat template; put it into chat_template_kwargs"


def _is_written(name: str, template: ChatTemplate) -> bool:
    """Whether the template's text has the name of a message's field or, of thoughts, another of their names."""
    return any(alias in template.text for alias in (THOUGHTS if name in THOUGHTS else (name,)))


def _template(tokenizer: "PreTrainedTokenizerBase", has_tools: bool, where: str) -> ChatTemplate:
    if not getattr(tokenizer, "chat_template", None):
        raise DataError(f"{where}: the tokenizer has no chat template: use the tokenizer of a chat model")
    try:
        return ChatTemplate.of(tokenizer, has_tools)
    except ValueError:
        raise DataError(
            f"{where}: none of the tokenizer's chat templates is the default one; name one `default`"
        ) from None


def _for_template(message: Message, template: ChatTemplate, where: str) -> Message:
    """The message in the form that the template writes, without its weights. DataError if there is no such form."""
    changed = {name: value for name, value in message.items() if name not in WEIGHTS}
    content, calls = message.get("content"), message.get("tool_calls") or []
    if not (content is None or isinstance(content, str | list)):
        raise DataError(f"{where}: a message has content of type {type(content).__name__}, not text: repair the row")
    if not isinstance(calls, list):
        raise DataError(f"{where}: tool_calls must be a list of objects such as {{'function': ...}}; repair the row")
    if isinstance(content, list) or (isinstance(content, str) and template.content_form == "structure"):
        texts = [_part_text(part, where) for part in ([content] if isinstance(content, str) else content)]
        is_joined = template.content_form == "text"
        changed["content"] = "".join(texts) if is_joined else [{"type": "text", "text": text} for text in texts]
    if calls:
        changed["tool_calls"] = [_call(call, template.arguments_form, where) for call in calls]
    return changed


def _part_text(part: Any, where: str) -> str:
    text = part.get("text") if isinstance(part, dict) else part
    if not isinstance(text, str):
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        raise DataError(f"{where}: a message has content of type {kind}; only text is read: drop the row")
    return text


def _call(call: Any, form: Form, where: str) -> Any:
    """The tool call with its arguments in this form; OpenAI's format has them as JSON text."""
    if not isinstance(call, dict):
        raise DataError(f"{where}: tool_calls must be a list of objects such as {{'function': ...}}; repair the row")
    if isinstance(call.get("function"), dict):
        return call | {"function": _call(call["function"], form, where)}
    arguments = call.get("arguments")
    if isinstance(arguments, str) and form == "structure":
        return call | {"arguments": json_of(arguments, dict, "arguments of a tool call", where)}
    if isinstance(arguments, dict) and form == "text":
        return call | {"arguments": json.dumps(arguments, ensure_ascii=False)}
    return call


def variables_of(value: Any, where: str) -> dict[str, Any]:
    """Variables of a template, or those of JSON text. DataError for one that decides what is written of the row."""
    variables: dict[str, Any] = json_of(value, dict, "column 'chat_template_kwargs'", where)
    if reserved := next((name for name in RESERVED if name in variables), None):
        raise DataError(f"{where}: chat_template_kwargs may not hold {reserved}; give it a column or drop it")
    return variables


def _utf8(text: str, where: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as e:
        raise DataError(
            f"{where}: {text[e.start]!r} in a message is half of a surrogate pair; drop or repair the row"
        ) from None
    return text
