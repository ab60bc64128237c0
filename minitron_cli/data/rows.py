"""Rows of a source and the documents made from them, checked. Knows no file and no tokenizer."""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from minitron_cli.data.loss_spans import LossSpans, SpannedContent
from minitron_cli.errors import DataError

if TYPE_CHECKING:
    import numpy as np


class Columns(NamedTuple):
    """Columns to read."""

    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    """Columns that are None where they are missing."""
    advice: str = "set column to the one to read, or format: auto"
    """What to do where a required one is missing."""

    def others(self, present: Iterable[str]) -> tuple[str, ...]:
        """Columns that are present and not read."""
        return tuple(name for name in present if name not in self.required and name not in self.optional)


class Row(NamedTuple):
    """One row as read, unchecked."""

    values: tuple[Any, ...]
    """Values of the required columns, then of the optional ones, in their order."""
    where: str
    """File and line, for messages."""
    size_bytes: int
    """Its part of the source's bytes, for progress bars."""
    others: tuple[str, ...] = ()
    """Names of the columns that are not read."""


class Ids(NamedTuple):
    """Token ids and their loss mask (None: all are scored)."""

    ids: "np.ndarray"
    loss_mask: "np.ndarray | None" = None


Content = str | SpannedContent | LossSpans | Ids
"""Text, text that is scored in part, before and after a tokenizer has written it, or token ids."""


class Document(NamedTuple):
    """One document to tokenize, not empty."""

    content: Content
    where: str
    size_bytes: int


def row_of(record: Any, columns: Columns, where: str, size_bytes: int) -> Row:
    """Row of a JSON object. DataError if it is not an object or lacks a required column."""
    if not isinstance(record, dict):
        example = next(iter(columns.required), "text")
        raise DataError(f"{where}: holds {_kind(record)}, not an object; write rows such as {{{example!r}: ...}}")
    require_columns(columns, list(record), where)
    values = tuple(record.get(column) for column in (*columns.required, *columns.optional))
    return Row(values, where, size_bytes, columns.others(record))


def require_columns(columns: Columns, present: list[str], where: str) -> None:
    """DataError unless every required column is present."""
    for column in columns.required:
        if column not in present:
            listed = ", ".join(map(repr, present[:10])) or "no columns at all"
            raise DataError(f"{where}: there is no column {column!r} but {listed}; {columns.advice}")


def empty(where: Path | str) -> DataError:
    """Error to raise for a source without a row."""
    return DataError(f"{where}: is empty; drop it from the sources or write it again")


def first_line(error: Exception) -> str:
    """First line of an error's message, or its type."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def token_documents(rows: Iterable[Row], columns: Sequence[str]) -> Iterator[Document]:
    """Documents of token ids, from rows that are not empty; a second column is the loss mask."""
    documents = ((_ids(row, columns), row) for row in rows)
    return (Document(content, row.where, row.size_bytes) for content, row in documents if content.ids.size)


def text_value(row: Row, i: int, column: str) -> str:
    """Value i of the row, which is that of `column`. DataError unless it is text that can be encoded in UTF-8."""
    value = value_of(row, i)
    if not isinstance(value, str):
        raise DataError(f"{row.where}: column {column!r} holds {_kind(value)}, not text; drop or repair the row")
    try:
        value.encode()
    except UnicodeEncodeError as e:
        raise DataError(
            f"{row.where}: character {e.start} of column {column!r} is half of a surrogate pair; drop or repair the row"
        ) from None
    return value


def value_of(row: Row, i: int) -> Any:
    """Value i of the row; None if it has fewer, as a row of a text file has one, whatever the columns."""
    return row.values[i] if i < len(row.values) else None


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

    value = value_of(row, i)
    if isinstance(value, str):  # a cell of a .csv file
        with suppress(ValueError, RecursionError):
            value = json.loads(value)
    try:
        values = np.asarray(value)
    except ValueError:  # a list of lists
        values = np.asarray(None)
    if values.ndim != 1 or (values.size and values.dtype.kind not in kinds):
        raise DataError(
            f"{row.where}: column {column!r} is not a flat list of whole numbers; write one list of token ids per row"
        )
    return values


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__
