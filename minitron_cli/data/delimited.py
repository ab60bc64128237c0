"""Rows of tables of text: cells separated by commas or tabs, the first row their names (RFC 4180)."""

import csv
from collections.abc import Generator, Iterator
from contextlib import closing
from pathlib import Path

from minitron_cli.data.opened import UNPACKED_BYTES, Opened, decoded, opened, suffix
from minitron_cli.data.rows import Columns, Row, empty, require_columns, row_of
from minitron_cli.errors import DataError

DELIMITERS = {".csv": ",", ".tsv": "\t"}


def delimited_rows(path: Path, columns: Columns) -> Iterator[Row]:
    """Rows, all of whose values are text."""
    with closing(_records(path)) as records:
        header, _ = next(records, ([], 0))
        if not header:
            raise empty(path)
        require_columns(columns, header, str(path))
        for number, (cells, size_bytes) in enumerate(records):
            where = f"{path}: row {number}"
            if len(cells) != len(header):
                raise DataError(f"{where}: has {len(cells)} cells and the first line {len(header)}; repair the row")
            yield row_of(dict(zip(header, cells, strict=True)), columns, where, size_bytes)


def header_of(path: Path) -> list[str]:
    """Names in the first row."""
    with closing(_records(path)) as records:
        return next(records, ([], 0))[0]


def _records(path: Path) -> Generator[tuple[list[str], int]]:
    """Cells of each row that is not blank, and the number of bytes that were read for it."""
    csv.field_size_limit(UNPACKED_BYTES)
    with opened(path) as file:
        lines = _Lines(file)
        reader = csv.reader(iter(lines), delimiter=DELIMITERS[suffix(path)], strict=True)
        try:
            for cells in reader:
                if cells:
                    yield cells, lines.taken()
        except csv.Error as e:
            raise DataError(f"{path}:{reader.line_num}: is no table of text ({e}); write it again") from None


class _Lines:
    """Lines of a file as text, and the number of bytes since the last question."""

    def __init__(self, file: Opened) -> None:
        self._file, self._size = file, 0

    def __iter__(self) -> Iterator[str]:
        for number, (line, size) in enumerate(self._file.lines(), 1):
            self._size += size
            yield decoded(line, self._file.path, number)

    def taken(self) -> int:
        """Bytes read since the call before."""
        taken, self._size = self._size, 0
        return taken
