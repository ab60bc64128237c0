"""What formats of conversations have in common: the columns that go with the messages. Knows no format."""

from typing import Any, ClassVar

from minitron_cli.data.conversation import Conversation, variables_of
from minitron_cli.data.formats.base import BaseFormat
from minitron_cli.data.messages import Message, json_of
from minitron_cli.data.rows import Row


class ConversationFormat(BaseFormat):
    """Turns a row into a conversation. `tools` and `chat_template_kwargs` may be JSON text."""

    optional: ClassVar[tuple[str, ...]] = ("tools", "chat_template_kwargs", "system")

    def conversation(self, messages: tuple[Message, ...], row: Row) -> Conversation | None:
        """Conversation of these messages and the row's optional columns; None if no message in it counts.

        The system's message begins it, unless there is one.
        """
        system = self.optional_value(row, "system")
        if system and messages[0]["role"] != "system":
            messages = ({"role": "system", "content": system}, *messages)
        talk = Conversation(messages, self._tools(row), self._variables(row), row.others)
        return talk if talk.scored(row.where) else None

    def _tools(self, row: Row) -> tuple[Any, ...]:
        tools = self.optional_value(row, "tools")
        return () if tools is None else tuple(json_of(tools, list, "column 'tools'", row.where))

    def _variables(self, row: Row) -> dict[str, Any]:
        variables = self.optional_value(row, "chat_template_kwargs")
        return {} if variables is None else variables_of(variables, row.where)
