"""Rows of JSON: one object per line, or a list of objects. Knows no column's meaning."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from minitron_cli.data.opened import decoded, opened
from minitron_cli.data.rows import Columns, Row, empty, row_of
from minitron_cli.errors import DataError

PEEK_BYTES = 1 << 20


def json_line_rows(path: Path, columns: Columns) -> Iterator[Row]:
    """Rows of one object per line."""
    number = 0
    with opened(path) as file:
        for number, (line, size_bytes) in enumerate(file.lines(), 1):
            if not line.isspace():
                where = f"{path}:{number}"
                yield row_of(_parsed(decoded(line, path, number), where), columns, where, size_bytes)
    if not number:
        raise empty(path)


def json_rows(path: Path, columns: Columns) -> Iterator[Row]:
    """Rows of one list of objects, or of one object per line."""
    with opened(path) as file:
        is_list = file.begins_with(PEEK_BYTES).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"["
    return _json_list_rows(path, columns) if is_list else json_line_rows(path, columns)


def _json_list_rows(path: Path, columns: Columns) -> Iterator[Row]:
    """Rows of a list, parsed one at a time: the file's text is held in memory, its objects are not."""
    with opened(path) as file:
        text = decoded(file.read(), path)
    share = path.stat().st_size / max(1, len(text))
    position, item = _after("[", text, 0, path), 0
    while not text.startswith("]", position):
        start = _after(",", text, position, path) if item else position
        record, end = _parsed_at(text, start, path)
        where = f"{path}: item {item}"
        yield row_of(record, columns, where, round((end - start) * share))
        position, item = _after_space(text, end), item + 1
    if _after_space(text, position + 1) < len(text):
        raise _no_json(text, position + 1, path, "more text after the list")
    if not item:
        raise empty(path)


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as e:
        raise DataError(f"{where}: is not JSON ({_reason(e)}); write one object per line") from None


def _parsed_at(text: str, position: int, path: Path) -> tuple[Any, int]:
    try:
        return json.JSONDecoder().raw_decode(text, position)
    except (ValueError, RecursionError) as e:
        raise _no_json(text, getattr(e, "pos", position), path, _reason(e)) from None


def _after(character: str, text: str, position: int, path: Path) -> int:
    """Start of the next value, after `character` and the white space around it."""
    position = _after_space(text, position)
    if not text.startswith(character, position):
        raise _no_json(text, position, path, f"{character!r} is missing")
    return _after_space(text, position + 1)


def _after_space(text: str, position: int) -> int:
    space = re.compile(r"[ \t\r\n]*").match(text, position)
    assert space
    return space.end()


def _no_json(text: str, position: int, path: Path, reason: str) -> DataError:
    line = text.count("\n", 0, position) + 1
    return DataError(f"{path}:{line}: is not JSON ({reason}); write a list of objects, or one object per line")


def _reason(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else getattr(error, "msg", str(error))
