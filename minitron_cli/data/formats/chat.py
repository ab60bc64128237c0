"""Rows of conversations, written by the tokenizer's chat template."""

from typing import Literal

from minitron_cli.data.conversation import Conversation
from minitron_cli.data.formats.conversations import ConversationFormat
from minitron_cli.data.messages import messages_of
from minitron_cli.data.rows import Row


class ChatFormat(ConversationFormat):
    """A list of messages (role, content), of which the assistant's are scored and trained on.

    A message with weight 0 or train: false does not count.
    """

    kind: Literal["chat"] = "chat"
    column: str = "messages"
    """Column that holds the list of messages."""

    def content(self, row: Row) -> Conversation | None:
        """Conversation of the row; None if no message in it counts."""
        return self.conversation(messages_of(row.values[0], self.column, row.where), row)
