"""Row formats: what a row of a source means. A format is one file here, its class in the union below and its name in
`choices`, from where the command line has it without these classes.

A format names the columns that it reads and turns a row into a document's content: text, of which all tokens are
scored, or something that says which of its characters are (`loss_spans`).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, get_args

from minitron_cli.choices import AUTO, FormatName
from minitron_cli.data.formats.alpaca import AlpacaFormat
from minitron_cli.data.formats.chat import ChatFormat
from minitron_cli.data.formats.completion import CompletionFormat
from minitron_cli.data.formats.sharegpt import ShareGPTFormat
from minitron_cli.data.formats.text import TextFormat
from minitron_cli.data.rows import Document, Row
from minitron_cli.errors import DataError

RowFormat = TextFormat | ChatFormat | CompletionFormat | ShareGPTFormat | AlpacaFormat

FORMATS: Mapping[str, type[RowFormat]] = {cls.model_fields["kind"].default: cls for cls in get_args(RowFormat)}
assert {*FORMATS, AUTO} == {*get_args(FormatName)}, "choices.FormatName names other formats than the union"


def _first_sentence(cls: type[RowFormat]) -> str:
    sentence = (cls.__doc__ or "").partition(".")[0]
    return f"{sentence[:1].lower()}{sentence[1:]}."


HELP = " ".join(f"{kind}: {_first_sentence(cls)}" for kind, cls in FORMATS.items())
HELP += f" {AUTO}: the one whose columns the first row has."
"""One sentence for each format, from its docstring."""


def format_of(kind: str, columns: Mapping[str, Any]) -> RowFormat:
    """Format of this kind. `columns` are the source's keys (None: not given), of which it takes those that it has."""
    cls = FORMATS[kind]
    given = {name: value for name, value in columns.items() if value is not None and name in cls.model_fields}
    return cls.model_validate(given)


def kind_of(present: Sequence[str], where: str) -> str:
    """Kind of the rows that have these columns: the first whose own are among them. DataError if there is none.

    Text comes last, because rows of another kind often hold their text, as it was written once, as well.
    """
    kinds = [kind for kind, cls in FORMATS.items() if set(cls().columns) <= set(present)]
    if not kinds:
        known = "; ".join(f"{kind} has {' and '.join(cls().columns)}" for kind, cls in FORMATS.items())
        listed = ", ".join(map(repr, present[:10])) or "none"
        raise DataError(f"{where}: the columns {listed} tell no format ({known}); name format and column")
    return min(kinds, key=lambda kind: kind == "text")


def documents(rows: Iterable[Row], row_format: RowFormat) -> Iterator[Document]:
    """Documents of the rows that are not empty, in their order. DataError at the first broken row."""
    for row in rows:
        if (content := row_format.content(row)) is not None:
            yield Document(content, row.where, row.size_bytes)
