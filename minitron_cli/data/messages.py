"""Messages of a conversation as data sets store them. Knows no template."""

import json
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from minitron_cli.errors import DataError

Message = dict[str, Any]  # role, content and whatever else a template reads

ROLES = {
    **dict.fromkeys(("human", "prompter"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "bing", "bard", "model", "function_call"), "assistant"),
    **dict.fromkeys(("observation", "function_response", "tool_response"), "tool"),
}
"""Roles of ShareGPT's format and its relatives, by those of chat templates."""
WEIGHTS = ("weight", "train", "training")
"""Fields of a message that say whether it is scored: OpenAI's weight, axolotl's train and training."""


def messages_of(value: Any, column: str, where: str) -> tuple[Message, ...]:
    """Messages (role, content) of a conversation, of ShareGPT's (from, value), or of JSON text of either.

    DataError if there are none.
    """
    with suppress(ValueError, RecursionError, TypeError):
        value = json.loads(value) if isinstance(value, str) else value
    listed = list(value) if isinstance(value, Iterable) and not isinstance(value, str | dict) else []
    messages = tuple(_message(item, where) for item in listed if isinstance(item, dict))
    if not listed or len(messages) < len(listed) or not all(isinstance(m.get("role"), str) for m in messages):
        raise DataError(
            f"{where}: column {column!r} is not a conversation; "
            "write a list of messages such as {'role': 'user', 'content': ...}"
        )
    return messages


def is_scored(message: Message, where: str) -> bool:
    """Whether the assistant says it and no weight is 0. DataError for a weight that is neither 0 nor 1."""
    if message["role"] != "assistant":
        return False
    weights = {name: message[name] for name in WEIGHTS if message.get(name) is not None}
    for name, weight in weights.items():
        if weight not in (0, 1):
            raise DataError(f"{where}: a message has {name} {weight!r}; write 1 to train on it or 0 not to")
    return all(weights.values())


def json_of(value: Any, kind: type, name: str, where: str) -> Any:
    """A value of this kind, or the one that its JSON text holds. DataError if it is neither."""
    if isinstance(value, str):
        with suppress(ValueError, RecursionError):
            value = json.loads(value)
    if not isinstance(value, kind):
        expected = "an object" if kind is dict else "a list"
        raise DataError(f"{where}: {name} must be {expected} or its JSON text; repair or drop the row")
    return value


def _message(item: dict[str, Any], where: str) -> Message:
    if "role" in item or not isinstance(item.get("from"), str):
        return item
    rest = {name: value for name, value in item.items() if name not in ("from", "value")}
    message = {"role": ROLES.get(item["from"], item["from"]), "content": item.get("value"), **rest}
    if item["from"] != "function_call":
        return message
    call = json_of(item.get("value"), dict, "the value of a function_call", where)
    return message | {"content": "", "tool_calls": [{"type": "function", "function": call}]}
