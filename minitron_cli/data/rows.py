"""One row of a source, and what it must hold to be a document. Knows no file and no tokenizer."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from minitron_cli.errors import DataError

if TYPE_CHECKING:
    import numpy as np


class Row(NamedTuple):
    """One row as it was read, unchecked."""

    value: Any
    where: str
    """The file and line, for messages."""
    size_bytes: int
    """Its share of the source's bytes, for progress bars."""


class Document(NamedTuple):
    """A text or the ids of its tokens, not empty."""

    content: Any
    """A str, or a numpy array of integers."""
    where: str
    size_bytes: int


def field(record: Any, column: str, where: str) -> Any:
    """The value of one column of a JSON object."""
    if not isinstance(record, dict):
        raise DataError(f"{where}: holds {_kind(record)}, not an object; write rows such as {{{column!r}: ...}}")
    require_column(column, list(record), where)
    return record[column]


def require_column(column: str, present: list[str], where: str) -> None:
    if column not in present:
        listed = ", ".join(map(repr, present[:10])) or "no columns at all"
        raise DataError(f"{where}: there is no column {column!r} but {listed}; set column to the one to read")


def text_documents(rows: Iterable[Row], column: str) -> Iterator[Document]:
    """The rows that are not empty, each checked to be text."""
    return (Document(*row) for row in rows if _text(row, column))


def token_documents(rows: Iterable[Row], column: str) -> Iterator[Document]:
    """The rows that are not empty, each as an array of integers."""
    arrays = ((_token_ids(row, column), row) for row in rows)
    return (Document(ids, row.where, row.size_bytes) for ids, row in arrays if ids.size)


def _text(row: Row, column: str) -> str:
    if not isinstance(row.value, str):
        raise DataError(f"{row.where}: column {column!r} holds {_kind(row.value)}, not text; drop or repair the row")
    try:
        row.value.encode()
    except UnicodeEncodeError as e:
        raise DataError(
            f"{row.where}: character {e.start} of column {column!r} is half of a surrogate pair; drop or repair the row"
        ) from None
    return row.value


def _token_ids(row: Row, column: str) -> "np.ndarray":
    import numpy as np

    try:
        ids = np.asarray(row.value)
    except ValueError:  # a list of lists
        ids = np.asarray(None)
    if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
        raise DataError(
            f"{row.where}: column {column!r} is not a flat list of whole numbers; write one list of token ids per row"
        )
    return ids


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__
