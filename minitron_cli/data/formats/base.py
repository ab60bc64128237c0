"""Base class of the row formats."""

from typing import ClassVar

from minitron_cli.data.rows import Content, Row
from minitron_cli.spec import Spec


class BaseFormat(Spec):
    """Turns a row into the content of one document. `column` and `prompt_column` are set by the source's keys."""

    column: str
    """Column that holds the text, the messages or the completion."""

    has_loss_mask: ClassVar[bool] = True
    """Whether some tokens of a document may not be scored."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns to read, in the order of `Row.values`."""
        return (self.column,)

    def content(self, row: Row) -> Content | None:
        """Content of the row's document; None for a row to skip. DataError for a broken row."""
        raise NotImplementedError
