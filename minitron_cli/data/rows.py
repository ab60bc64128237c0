"""Rows of a source and the documents made from them, checked. Knows no file and no tokenizer."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from minitron_cli.data.loss_spans import SpannedContent
from minitron_cli.errors import DataError

if TYPE_CHECKING:
    import numpy as np


class Row(NamedTuple):
    """One row as read, unchecked."""

    values: tuple[Any, ...]
    """Values of the requested columns, in their order."""
    where: str
    """File and line, for messages."""
    size_bytes: int
    """Its part of the source's bytes, for progress bars."""


class Ids(NamedTuple):
    """Token ids and their loss mask (None: all are scored)."""

    ids: "np.ndarray"
    loss_mask: "np.ndarray | None" = None


Content = str | SpannedContent | Ids
"""Text, text that is scored in part, or token ids."""


class Document(NamedTuple):
    """One document to tokenize, not empty."""

    content: Content
    where: str
    size_bytes: int


def fields(record: Any, columns: Sequence[str], where: str) -> tuple[Any, ...]:
    """Values of some columns of a JSON object. DataError if it is not an object or lacks one."""
    if not isinstance(record, dict):
        raise DataError(f"{where}: holds {_kind(record)}, not an object; write rows such as {{{columns[0]!r}: ...}}")
    require_columns(columns, list(record), where)
    return tuple(record[column] for column in columns)


def require_columns(columns: Sequence[str], present: list[str], where: str) -> None:
    """DataError unless every column is present."""
    for column in columns:
        if column not in present:
            listed = ", ".join(map(repr, present[:10])) or "no columns at all"
            raise DataError(f"{where}: there is no column {column!r} but {listed}; set column to the one to read")


def token_documents(rows: Iterable[Row], columns: Sequence[str]) -> Iterator[Document]:
    """Documents of token ids, from rows that are not empty; a second column is the loss mask."""
    documents = ((_ids(row, columns), row) for row in rows)
    return (Document(content, *row[1:]) for content, row in documents if content.ids.size)


def text_value(row: Row, i: int, column: str) -> str:
    """Value i of the row, which is that of `column`. DataError unless it is text that can be encoded in UTF-8."""
    value = row.values[i] if i < len(row.values) else None  # a row of a text file has one value, whatever the columns
    if not isinstance(value, str):
        raise DataError(f"{row.where}: column {column!r} holds {_kind(value)}, not text; drop or repair the row")
    try:
        value.encode()
    except UnicodeEncodeError as e:
        raise DataError(
            f"{row.where}: character {e.start} of column {column!r} is half of a surrogate pair; drop or repair the row"
        ) from None
    return value


def _ids(row: Row, columns: Sequence[str]) -> Ids:
    ids = _integers(row, 0, columns[0])
    if len(columns) == 1:
        return Ids(ids)
    mask = _integers(row, 1, columns[1], kinds="iub")
    if mask.shape != ids.shape or not set(mask.tolist()) <= {0, 1}:
        raise DataError(f"{row.where}: column {columns[1]!r} must hold one 0 or 1 for each token id; repair the row")
    return Ids(ids, mask.astype(bool))


def _integers(row: Row, i: int, column: str, kinds: str = "iu") -> "np.ndarray":
    import numpy as np

    try:
        values = np.asarray(row.values[i])
    except ValueError:  # a list of lists
        values = np.asarray(None)
    if values.ndim != 1 or (values.size and values.dtype.kind not in kinds):
        raise DataError(
            f"{row.where}: column {column!r} is not a flat list of whole numbers; write one list of token ids per row"
        )
    return values


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__
