"""Files of text, JSON and tables, found by path or pattern and read row by row in little memory. Knows no tokens."""

import glob
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

from minitron_cli import progress
from minitron_cli.data.delimited import delimited_rows, header_of
from minitron_cli.data.json_rows import json_line_rows, json_rows
from minitron_cli.data.opened import PACKINGS, decoded, opened, suffix
from minitron_cli.data.rows import Columns, Row, empty
from minitron_cli.data.saved_datasets import saved_files
from minitron_cli.data.tables import arrow_rows, column_names, parquet_rows
from minitron_cli.errors import DataError

ALL = Columns()  # no column is asked for
READ_BYTES = 1 << 20
PASSAGE_BYTES = 64 << 10
LARGE_BYTES, MOST_SPARSE = 1 << 30, 100
"""A file of at least LARGE_BYTES that takes less than 1 / MOST_SPARSE of them on the disk is refused."""


def expand(patterns: Iterable[str]) -> list[Path]:
    """Files that paths and patterns name, each once, in the given order; those of a pattern are sorted."""
    paths = dict.fromkeys(path for pattern in patterns for path in _matches(pattern))
    return [_readable(path) for path in paths]


def rows(paths: Iterable[Path], columns: Columns = ALL) -> Iterator[Row]:
    """Rows of the files one after another; the suffix decides how a file is read."""
    return (row for path in paths for row in READERS.get(suffix(path), _text_row)(path, columns))


def first_columns(paths: Sequence[Path]) -> Sequence[str]:
    """Names of the columns of the first row; `text` for plain text. DataError if the first file has no row."""
    path = next((path for path in paths if path.stat().st_size), paths[0])
    if suffix(path) in (".parquet", ".arrow"):
        return column_names(path)
    if suffix(path) in (".csv", ".tsv"):
        return header_of(path)
    if suffix(path) not in READERS:
        return ["text"]
    return next((row.others for row in islice(rows([path]), 1)), ())


def is_one_text(paths: Sequence[Path]) -> bool:
    """Whether the only file is one of plain text."""
    return len(paths) == 1 and suffix(paths[0]) not in READERS


def passages(paths: Iterable[Path], columns: Columns = ALL) -> Iterator[Row]:
    """Passages of plain text files, one row each."""
    for path in paths:
        start = 1
        with opened(path) as file:
            sizes: list[int] = []
            for lines in pieces(_sized(file.lines(), sizes)):
                yield Row((decoded(b"".join(lines), path, start),), f"{path}:{start}", sum(sizes))
                start += len(lines)
                sizes.clear()


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
    return [[_suffixes(path), sha256] for path, sha256 in zip(paths, hashed(paths), strict=True)]


def hashed(paths: list[Path]) -> list[str]:
    """SHA-256 of each file, in hexadecimal."""
    with progress.track("hash data", total=total_bytes(paths), unit="bytes") as step:
        return [_sha256(path, step) for path in paths]


def total_bytes(paths: Iterable[Path]) -> int:
    """Sum of the files' sizes."""
    return sum(path.stat().st_size for path in paths)


def _suffixes(path: Path) -> str:
    """What decides how the file is read."""
    return suffix(path) + (path.suffix.lower() if path.suffix.lower() in PACKINGS else "")


def _sized(lines: Iterable[tuple[bytes, int]], sizes: list[int]) -> Iterator[bytes]:
    """The lines; their sizes are added to `sizes`."""
    for line, size in lines:
        sizes.append(size)
        yield line


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
        return [_regular(file) for file in saved_files(path)]
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
        raise empty(path)
    return path


def _readable(path: Path) -> Path:
    """The path. DataError if the file is of a kind that is not read, or consists of holes."""
    if advice := UNREADABLE.get(path.suffix.lower()) or (PACKED_TABLE if _is_packed_table(path) else None):
        raise DataError(f"{path}: {_suffixes(path)} files are not read; {advice}")
    status = path.stat()
    if status.st_size >= LARGE_BYTES and status.st_blocks * 512 * MOST_SPARSE < status.st_size and _has_hole(path):
        raise DataError(
            f"{path}: seems to have {status.st_size:,} bytes, of which {status.st_blocks * 512:,} were ever written; "
            "write it again"
        )
    return path


def _is_packed_table(path: Path) -> bool:
    return path.suffix.lower() in PACKINGS and suffix(path) in (".parquet", ".arrow", *UNREADABLE)


def _has_hole(path: Path) -> bool:
    """Whether the file system knows a part of the file that was never written."""
    with open(path, "rb") as file:
        return os.lseek(file.fileno(), 0, os.SEEK_HOLE) < path.stat().st_size


def _text_row(path: Path, columns: Columns) -> Iterator[Row]:
    with opened(path) as file:
        yield Row((decoded(file.read(), path),), str(path), path.stat().st_size)


READERS: dict[str, Callable[[Path, Columns], Iterator[Row]]] = {
    ".json": json_rows,
    ".jsonl": json_line_rows,
    ".ndjson": json_line_rows,
    ".parquet": parquet_rows,
    ".arrow": arrow_rows,
    ".csv": delimited_rows,
    ".tsv": delimited_rows,
}
UNREADABLE = dict.fromkeys((".zip", ".tar", ".tgz", ".7z"), "unpack it first")
PACKED_TABLE = "unpack it first: the table is packed inside"
