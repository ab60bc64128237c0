"""One row of a source, and what it must hold to be a document. Knows no file and no tokenizer."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from minitron_cli.errors import DataError

if TYPE_CHECKING:
    import numpy as np


class Row(NamedTuple):
    """One row as it was read, unchecked."""

    values: tuple[Any, ...]
    """Of the columns asked for, in their order."""
    where: str
    """The file and line, for messages."""
    size_bytes: int
    """Its share of the source's bytes, for progress bars."""


class Completion(NamedTuple):
    """What was asked and what was answered; only the answer counts."""

    prompt: str
    completion: str


class Ids(NamedTuple):
    """Ready token ids, and which of them count (None: all)."""

    ids: "np.ndarray"
    loss_mask: "np.ndarray | None" = None


class Chat(NamedTuple):
    """A conversation; only what the assistant says counts."""

    messages: tuple[dict[str, Any], ...]


Content = str | Completion | Chat | Ids


class Document(NamedTuple):
    """Something to make tokens of, not empty."""

    content: Content
    where: str
    size_bytes: int


def fields(record: Any, columns: Sequence[str], where: str) -> tuple[Any, ...]:
    """The values of some columns of a JSON object."""
    if not isinstance(record, dict):
        raise DataError(f"{where}: holds {_kind(record)}, not an object; write rows such as {{{columns[0]!r}: ...}}")
    require_columns(columns, list(record), where)
    return tuple(record[column] for column in columns)


def require_columns(columns: Sequence[str], present: list[str], where: str) -> None:
    for column in columns:
        if column not in present:
            listed = ", ".join(map(repr, present[:10])) or "no columns at all"
            raise DataError(f"{where}: there is no column {column!r} but {listed}; set column to the one to read")


def text_documents(rows: Iterable[Row], column: str) -> Iterator[Document]:
    """The rows that are not empty, each checked to be text."""
    return (Document(row.values[0], *row[1:]) for row in rows if _text(row, 0, column))


def completion_documents(rows: Iterable[Row], columns: tuple[str, str]) -> Iterator[Document]:
    """Prompt and completion of each row; those with an empty completion are skipped."""
    pairs = ((Completion(*(_text(row, i, column) for i, column in enumerate(columns))), row) for row in rows)
    return (Document(content, *row[1:]) for content, row in pairs if content.completion)


def chat_documents(rows: Iterable[Row], column: str) -> Iterator[Document]:
    """The conversations in which the assistant speaks."""
    chats = ((_chat(row, column), row) for row in rows)
    return (Document(chat, *row[1:]) for chat, row in chats if any(_is_answer(m) for m in chat.messages))


def token_documents(rows: Iterable[Row], columns: Sequence[str]) -> Iterator[Document]:
    """The rows that are not empty, each as an array of integers; a second column says which of them count."""
    documents = ((_ids(row, columns), row) for row in rows)
    return (Document(content, *row[1:]) for content, row in documents if content.ids.size)


def _text(row: Row, i: int, column: str) -> str:
    value = row.values[i] if i < len(row.values) else None  # a text file has one value whatever is asked for
    if not isinstance(value, str):
        raise DataError(f"{row.where}: column {column!r} holds {_kind(value)}, not text; drop or repair the row")
    try:
        value.encode()
    except UnicodeEncodeError as e:
        raise DataError(
            f"{row.where}: character {e.start} of column {column!r} is half of a surrogate pair; drop or repair the row"
        ) from None
    return value


def _chat(row: Row, column: str) -> Chat:
    messages = row.values[0]
    messages = list(messages) if hasattr(messages, "__iter__") and not isinstance(messages, str | dict) else []
    if not messages or not all(isinstance(m, dict) and isinstance(m.get("role"), str) for m in messages):
        raise DataError(
            f"{row.where}: column {column!r} is not a conversation; "
            "write a list of messages such as {'role': 'user', 'content': ...}"
        )
    return Chat(tuple(messages))


def _is_answer(message: dict[str, Any]) -> bool:
    return message["role"] == "assistant"


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
