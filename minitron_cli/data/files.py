"""Files of text, JSON, JSON lines, Parquet and Arrow, read row by row in little memory. Knows no tokens."""

import glob
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minitron_cli import progress
from minitron_cli.data.rows import Row, fields, require_columns
from minitron_cli.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

READ_BYTES = 1 << 20
BATCH_ROWS = 256
PASSAGE_BYTES = 64 << 10


def expand(patterns: Iterable[str]) -> list[Path]:
    """Files that paths and patterns name, each once, in the given order; those of a pattern are sorted."""
    paths = dict.fromkeys(path for pattern in patterns for path in _matches(pattern))
    return [_readable(path) for path in paths]


def rows(paths: Iterable[Path], columns: Sequence[str] = ()) -> Iterator[Row]:
    """Rows of the files one after another; the suffix decides how a file is read."""
    return (row for path in paths for row in READERS.get(_suffix(path), _text_row)(path, columns))


def is_one_text(paths: Sequence[Path]) -> bool:
    """Whether the only file is one of plain text."""
    return len(paths) == 1 and _suffix(paths[0]) not in READERS


def passages(paths: Iterable[Path], columns: Sequence[str] = ()) -> Iterator[Row]:
    """Passages of plain text files, one row each."""
    for path in paths:
        start = 1
        with open(path, "rb") as file:
            for lines in pieces(file):
                data = b"".join(lines)
                yield Row((_decoded(data, path, start),), f"{path}:{start}", len(data))
                start += len(lines)


def pieces(lines: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Lists of consecutive lines: each ends with the first blank line after 64 kB, or with any line after 256 kB."""
    piece, size_bytes = [], 0
    for line in lines:
        piece.append(line)
        size_bytes += len(line)
        if size_bytes >= PASSAGE_BYTES and (line.isspace() or size_bytes >= 4 * PASSAGE_BYTES):
            yield piece
            piece, size_bytes = [], 0
    if piece:
        yield piece


def identity(paths: list[Path]) -> list[list[str]]:
    """Suffix and content hash of each file; not its path."""
    return [[_suffix(path), sha256] for path, sha256 in zip(paths, hashed(paths), strict=True)]


def hashed(paths: list[Path]) -> list[str]:
    """SHA-256 of each file, in hexadecimal."""
    with progress.track("hash data", total=total_bytes(paths), unit="bytes") as step:
        return [_sha256(path, step) for path in paths]


def total_bytes(paths: Iterable[Path]) -> int:
    """Sum of the files' sizes."""
    return sum(path.stat().st_size for path in paths)


def _suffix(path: Path) -> str:
    return path.suffix.lower()


def _sha256(path: Path, step: progress.Step) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(READ_BYTES):
            digest.update(piece)
            step(len(piece))
    return digest.hexdigest()


def _matches(pattern: str) -> list[Path]:
    path = Path(pattern).expanduser()
    if path.is_dir():
        raise DataError(f"{path}: is a directory; name the files in it, for example {path / '**' / '*.jsonl'}")
    if path.exists():
        return [_regular(path)]
    if not glob.has_magic(pattern):
        raise DataError(f"{path}: there is no such file; correct the path, which starts at {Path.cwd()}")
    found = sorted(Path(name) for name in glob.glob(str(path), recursive=True))
    files = [path for path in found if path.is_file()]
    if not files:
        raise DataError(f"{path}: no file matches the pattern; correct it, or quote it if it starts at {Path.cwd()}")
    return files


def _regular(path: Path) -> Path:
    if not path.is_file():
        raise DataError(f"{path}: is not a regular file; write its content to one")
    if not path.stat().st_size:
        raise _empty(path)
    return path


def _readable(path: Path) -> Path:
    if advice := UNREADABLE.get(_suffix(path)):
        raise DataError(f"{path}: {_suffix(path)} files are not read; {advice}")
    return path


def _empty(path: Path | str) -> DataError:
    return DataError(f"{path}: is empty; drop it from the sources or write it again")


def _text_row(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    data = path.read_bytes()
    yield Row((_decoded(data, path),), str(path), len(data))


def _json_line_rows(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    number = 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.isspace():
                where = f"{path}:{number}"
                record = _parsed(_decoded(line, path, number), where)
                yield Row(fields(record, columns, where), where, len(line))
    if not number:
        raise _empty(path)


def _json_rows(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    """Rows of one list of objects, or of one object per line."""
    with open(path, "rb") as file:
        is_list = file.read(READ_BYTES).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"["
    return _json_list_rows(path, columns) if is_list else _json_line_rows(path, columns)


def _json_list_rows(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    """Rows of a list, parsed one at a time: the file's text is held in memory, its objects are not."""
    text = _decoded(path.read_bytes(), path)
    position, item = _after("[", text, 0, path), 0
    while not text.startswith("]", position):
        start = _after(",", text, position, path) if item else position
        record, end = _parsed_at(text, start, path)
        where = f"{path}: item {item}"
        yield Row(fields(record, columns, where), where, end - start)
        position, item = _after_space(text, end), item + 1
    if _after_space(text, position + 1) < len(text):
        raise _no_json(text, position + 1, path, "more text after the list")
    if not item:
        raise _empty(path)


def _parquet_rows(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    import pyarrow.parquet as pq

    with _damage_named(path, "Parquet"), pq.ParquetFile(path) as file:
        require_columns(columns, file.schema_arrow.names, str(path))
        batches = file.iter_batches(BATCH_ROWS, columns=list(columns))
        yield from table_rows(batches, columns, str(path), file.metadata.num_rows, path.stat().st_size)


def _arrow_rows(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    import pyarrow as pa

    with _damage_named(path, "Arrow"), pa.memory_map(str(path)) as file:
        is_file_format = file.read(6) == b"ARROW1"
        file.seek(0)
        table = (pa.ipc.open_file if is_file_format else pa.ipc.open_stream)(file).read_all()  # still on disk
        require_columns(columns, table.column_names, str(path))
        batches = table.select(list(columns)).to_batches(BATCH_ROWS)
        yield from table_rows(batches, columns, str(path), table.num_rows, path.stat().st_size)


def table_rows(
    batches: "Iterable[pa.RecordBatch | pa.Table]", columns: Sequence[str], where: str, count: int, size_bytes: int
) -> Iterator[Row]:
    """Rows of a table's columns; a list of numbers is a numpy array."""
    if not count:
        raise _empty(where)
    number = 0
    for batch in batches:
        for values in zip(*(_values(batch.column(column)) for column in columns), strict=True):
            share = (number + 1) * size_bytes // count - number * size_bytes // count
            yield Row(values, f"{where}: row {number}", share)
            number += 1


def _values(array: "pa.Array | pa.ChunkedArray") -> list[Any]:
    import pyarrow.types as types

    kind = array.type
    is_list = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    if not is_list or types.is_nested(kind.value_type):
        return array.to_pylist()
    return [scalar.values.to_numpy(zero_copy_only=False) if scalar.is_valid else None for scalar in array]


@contextmanager
def _damage_named(path: Path, format: str) -> Iterator[None]:
    """Turn Arrow's errors about a file's content into DataError; those of a failing disk are passed on."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, UnicodeDecodeError, OSError) as e:
        if isinstance(e, OSError) and e.errno:
            raise
        raise DataError(f"{path}: is damaged or no {format} file ({first_line(e)}); write it again") from e


def _decoded(data: bytes, path: Path, line: int = 1) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        line += data.count(b"\n", 0, e.start)
        raise DataError(f"{path}:{line}: is not UTF-8 ({e.reason}); convert the file to UTF-8") from None


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


def first_line(error: Exception) -> str:
    """First line of an error's message, or its type."""
    return next(iter(str(error).splitlines()), type(error).__name__)


READERS: dict[str, Callable[[Path, Sequence[str]], Iterator[Row]]] = {
    ".json": _json_rows,
    ".jsonl": _json_line_rows,
    ".ndjson": _json_line_rows,
    ".parquet": _parquet_rows,
    ".arrow": _arrow_rows,
}
UNREADABLE = {
    **dict.fromkeys((".csv", ".tsv"), "convert the table to .jsonl or .parquet"),
    **dict.fromkeys((".gz", ".bz2", ".xz", ".zst", ".zip", ".tar"), "unpack it first"),
}
