"""Base class of the row formats."""

from abc import abstractmethod
from typing import Any, ClassVar

from minitron_cli.data.rows import Columns, Content, Row, value_of
from minitron_cli.spec import Spec


class BaseFormat(Spec):
    """Turns a row into the content of one document. `column` and `prompt_column` are set by the source's keys."""

    kind: str
    """Name of the format, which its module has too."""
    column: str
    """Column that holds the text, the messages or the completion."""

    has_loss_mask: ClassVar[bool] = True
    """Whether some tokens of a document may not be scored."""
    optional: ClassVar[tuple[str, ...]] = ()
    """Columns that are read where they exist. Their values follow the others in `Row.values`."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that every row has, in the order of `Row.values`."""
        return (self.column,)

    @property
    def to_read(self) -> Columns:
        """Columns to read."""
        return Columns(self.columns, self.optional)

    def optional_value(self, row: Row, column: str) -> Any:
        """Value of an optional column; None where it is missing or empty."""
        return value_of(row, len(self.columns) + self.optional.index(column)) or None

    @abstractmethod
    def content(self, row: Row) -> Content | None:
        """Content of the row's document; None for a row to skip. DataError for a broken row."""
