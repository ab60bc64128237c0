"""Rows of plain text."""

from typing import ClassVar, Literal

from minitron_cli.data.formats.base import BaseFormat
from minitron_cli.data.rows import Row, text_value


class TextFormat(BaseFormat):
    """Plain text, of which all tokens are scored and trained on."""

    kind: Literal["text"] = "text"
    column: str = "text"
    """Column that holds the text."""

    has_loss_mask: ClassVar[bool] = False

    def content(self, row: Row) -> str | None:
        """Text of the row; None if it is empty."""
        return text_value(row, 0, self.column) or None
