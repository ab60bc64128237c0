"""A tokenizer's chat template, rendered in a process of its own. Knows no row and no token.

The process bounds the time, memory and output of a template (`template_process`). It is started at the first chat,
serves all templates and ends with this process.
"""

import atexit
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from signal import SIGPROF
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal

from minitron_cli.data import template_process
from minitron_cli.data.messages import Message
from minitron_cli.errors import EnvironmentFault

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Form = Literal["text", "structure", "either"]


class TemplateFailure(Exception):
    """A template does not write a conversation; the message says why."""


@dataclass(frozen=True)
class ChatTemplate:
    """A Jinja template, and the tokenizer's special tokens, which it may read."""

    text: str
    special_tokens: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, tokenizer: "PreTrainedTokenizerBase", has_tools: bool) -> "ChatTemplate":
        """Template for conversations with or without tools. ValueError if there is none."""
        text = tokenizer.get_chat_template(tools=[{}] if has_tools else None)
        return cls(text, tuple((name, str(token)) for name, token in tokenizer.special_tokens_map.items()))

    def write(
        self,
        messages: Sequence[Message],
        renders: Sequence[tuple[int, bool]],
        tools: Sequence[Any] | None = None,
        variables: dict[str, Any] | None = None,
    ) -> list[str]:
        """Texts of the first `stop` messages for each (stop, asks) of `renders`.

        With `asks`, the text that asks for an answer follows. TemplateFailure if the template refuses the messages or
        exceeds its bounds.
        """
        return list(
            _asked(
                template=self.text,
                renders=list(renders),
                messages=[{key: value for key, value in message.items() if value is not None} for message in messages],
                tools=tools,
                variables=dict(self.special_tokens) | (variables or {}),
            )["texts"]
        )

    def reads(self, name: str) -> bool:
        """Whether the template reads a variable of this name and does not set it. TemplateFailure if it is broken."""
        return name in _variables(self.text)

    @property
    def content_form(self) -> Form:
        """Form of a message's content that is written as plain text: text, a list of text parts, or either."""
        return _content_form(self)

    @property
    def arguments_form(self) -> Form:
        """Form of a tool call's arguments that is written as JSON or by value: JSON text, an object, or either."""
        return _arguments_form(self)


@lru_cache(maxsize=16)
def _variables(template: str) -> frozenset[str]:
    return frozenset(_asked(template=template)["variables"])


@lru_cache(maxsize=16)
def _content_form(template: ChatTemplate) -> Form:
    of_text = _probed(template, [{"role": "user", "content": "PROBE"}])
    of_parts = _probed(template, [{"role": "user", "content": [{"type": "text", "text": "PROBE"}]}])
    if "PROBE" not in of_text:
        return "structure" if "PROBE" in of_parts else "text"
    return "either" if of_parts == of_text else "text"


@lru_cache(maxsize=16)
def _arguments_form(template: ChatTemplate) -> Form:
    of_text = _is_plain(_probed(template, _tool_call('{"PROBE": "x"}')))
    of_object = _is_plain(_probed(template, _tool_call({"PROBE": "x"})))
    return "either" if of_text == of_object else "text" if of_text else "structure"


def _tool_call(arguments: Any) -> list[Message]:
    call = {"type": "function", "id": "abcdefghi", "function": {"name": "f", "arguments": arguments}}
    return [{"role": "user", "content": "x"}, {"role": "assistant", "content": "", "tool_calls": [call]}]


def _is_plain(text: str) -> bool:
    """Whether arguments are written, neither as JSON inside a JSON string nor as Python writes a dict."""
    return "PROBE" in text and '\\"PROBE' not in text and "'PROBE'" not in text


def _probed(template: ChatTemplate, messages: list[Message]) -> str:
    try:
        return template.write(messages, [(len(messages), False)])[0]
    except TemplateFailure:
        return ""


class _Process:
    """The process that renders."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._running: subprocess.Popen[str] | None = None
        atexit.register(self.close)

    def ask(self, request: str) -> str:
        """Answer to a request. TemplateFailure if the process has ended."""
        with self._lock:
            process = self._running = self._running or _started()
            assert process.stdin
            assert process.stdout
            try:
                process.stdin.write(request + "\n")
                process.stdin.flush()
                answer = process.stdout.readline()
            except BrokenPipeError:
                answer = ""
            except BaseException:  # an exception of a signal handler: the answer would be taken for the next one
                self.close()
                raise
            if not answer:
                code = process.wait()
                self.close()
                raise TemplateFailure(
                    f"it takes more than {template_process.SECONDS:g} s" if code == -SIGPROF else "it needs too much"
                )
            return answer

    def close(self) -> None:
        """End the process."""
        process, self._running = self._running, None
        if process is not None:
            process.kill()
            process.communicate()


def _started() -> "subprocess.Popen[str]":
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    script = [sys.executable, "-P", str(Path(template_process.__file__))]
    try:
        return subprocess.Popen(
            script, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8", env=environment
        )
    except OSError as e:
        raise EnvironmentFault(f"the process that writes chats does not start ({e}); free memory and run again") from e


_process = _Process()


def _asked(**request: Any) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(_process.ask(json.dumps(request, default=lambda v: f"<{type(v).__name__}>")))
    if "error" in answer:
        raise TemplateFailure(answer["error"])
    return answer
