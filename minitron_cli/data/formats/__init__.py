"""Row formats: what a row of a source means. A format is one file here and its name in `choices.FormatName`, from where
the command line has it without these classes.

A format names the columns that it reads and turns a row into a document's content: text, of which all tokens are
scored, or something that says which of its characters are (`loss_spans`).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any, get_args

from minitron_cli.choices import AUTO, FormatName
from minitron_cli.data.formats.base import BaseFormat
from minitron_cli.data.rows import Document, Row
from minitron_cli.errors import DataError


def _class_of(kind: str) -> type[BaseFormat]:
    """The format in the module of that name."""
    of_module = vars(import_module(f"{__name__}.{kind}")).values()
    formats = [found for found in of_module if isinstance(found, type) and issubclass(found, BaseFormat)]
    return next(cls for cls in formats if cls.model_fields["kind"].default == kind)


FORMATS: Mapping[str, type[BaseFormat]] = {kind: _class_of(kind) for kind in get_args(FormatName) if kind != AUTO}


def _first_sentence(cls: type[BaseFormat]) -> str:
    sentence = (cls.__doc__ or "").partition(".")[0]
    return f"{sentence[:1].lower()}{sentence[1:]}."


HELP = " ".join(f"{kind}: {_first_sentence(cls)}" for kind, cls in FORMATS.items())
HELP += f" {AUTO}: the one whose columns the first row has."
"""One sentence for each format, from its docstring."""


def format_of(kind: str, columns: Mapping[str, Any]) -> BaseFormat:
    """Format of this kind. `columns` are the source's keys (None: not given), of which it takes those that it has."""
    cls = FORMATS[kind]
    given = {name: value for name, value in columns.items() if value is not None and name in cls.model_fields}
    return cls.model_validate(given)


def kind_of(present: Sequence[str], where: str) -> str:
    """Kind of the rows that have these columns: the first whose own are among them. DataError if there is none.

    Text comes last, because rows of another kind often hold their text, as it was written once, as well.
    """
    kinds = [kind for kind, cls in FORMATS.items() if set(cls.model_validate({}).columns) <= set(present)]
    if not kinds:
        known = "; ".join(f"{kind} has {' and '.join(cls.model_validate({}).columns)}" for kind, cls in FORMATS.items())
        listed = ", ".join(map(repr, present[:10])) or "none"
        raise DataError(f"{where}: the columns {listed} tell no format ({known}); name format and column")
    return min(kinds, key=lambda kind: kind == "text")


def documents(rows: Iterable[Row], row_format: BaseFormat) -> Iterator[Document]:
    """Documents of the rows that are not empty, in their order. DataError at the first broken row."""
    for row in rows:
        if (content := row_format.content(row)) is not None:
            yield Document(content, row.where, row.size_bytes)
