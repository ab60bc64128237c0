"""Rows of conversations as ShareGPT has them."""

from typing import Literal

from minitron_cli.data.conversation import Conversation
from minitron_cli.data.formats.conversations import ConversationFormat
from minitron_cli.data.messages import messages_of
from minitron_cli.data.rows import Row


class ShareGPTFormat(ConversationFormat):
    """A list of turns (from, value), written as chats are: human asks and gpt answers."""

    kind: Literal["sharegpt"] = "sharegpt"
    column: str = "conversations"
    """Column that holds the list of turns."""

    def content(self, row: Row) -> Conversation | None:
        """Conversation of the row; None if no turn of it counts."""
        return self.conversation(messages_of(row.values[0], self.column, row.where), row)
