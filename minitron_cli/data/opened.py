"""Files opened to be read once from start to end, unpacked on the way if they are compressed. Knows no rows."""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from minitron_cli.errors import DataError

UNPACKED_BYTES = 1 << 28
"""Most bytes of a packed file that are held at once: a line, or a file that is read whole. A few kilobytes can hold
terabytes."""


def suffix(path: Path) -> str:
    """Suffix that says how the content is read, in lower case; that of the packing is left out."""
    path = path.with_name(path.name.lower())
    return Path(path.stem).suffix if path.suffix in PACKINGS else path.suffix


class Opened:
    """An open file and the part of it that was read."""

    def __init__(self, path: Path, raw: IO[bytes], file: IO[bytes], is_packed: bool) -> None:
        self.path, self._raw, self._file, self._is_packed = path, raw, file, is_packed
        self._position = 0

    def lines(self) -> Iterator[tuple[bytes, int]]:
        """Lines, each with the number of bytes of the file that were read for it."""
        most = UNPACKED_BYTES if self._is_packed else -1
        while line := self._file.readline(most):
            if len(line) == most:
                raise self._too_long("a line of it")
            yield line, self._taken(len(line))

    def read(self) -> bytes:
        """The whole content."""
        data = self._file.read(UNPACKED_BYTES if self._is_packed else -1)
        if self._is_packed and len(data) == UNPACKED_BYTES:
            raise self._too_long("it")
        return data

    def begins_with(self, most: int) -> bytes:
        """The first bytes, up to `most`; nothing is read after it."""
        return self._file.read(most)

    def _taken(self, size: int) -> int:
        if not self._is_packed:
            return size
        before, self._position = self._position, self._raw.tell()
        return self._position - before

    def _too_long(self, what: str) -> DataError:
        return DataError(
            f"{self.path}: {what} is longer than {UNPACKED_BYTES >> 20} MiB unpacked; unpack the file, or split it"
        )


@contextmanager
def opened(path: Path) -> Iterator[Opened]:
    """The file, open at its start. DataError while it is read if its packing is damaged."""
    unpack = PACKINGS.get(path.suffix.lower())
    with open(path, "rb") as raw:
        if unpack is None:
            yield Opened(path, raw, raw, False)
            return
        with _damage_named(path), unpack(raw) as file:
            yield Opened(path, raw, file, True)


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """Turn the unpackers' errors into DataError; those of a failing disk are passed on."""
    try:
        yield
    except (EOFError, zlib.error, lzma.LZMAError, OSError) as e:
        if isinstance(e, OSError) and e.errno:
            raise
        raise DataError(f"{path}: is damaged or no {path.suffix} file ({e}); write it again") from e


def _zstandard(raw: IO[bytes]) -> IO[bytes]:
    import pyarrow as pa

    return cast(IO[bytes], io.BufferedReader(cast(Any, pa.CompressedInputStream(raw, "zstd")), 1 << 16))


def _xz(raw: IO[bytes]) -> IO[bytes]:
    return cast(IO[bytes], lzma.LZMAFile(raw))  # the caller closes it


PACKINGS: Mapping[str, Callable[[IO[bytes]], IO[bytes]]] = {
    ".gz": lambda raw: cast(IO[bytes], gzip.GzipFile(fileobj=raw)),
    ".bz2": lambda raw: cast(IO[bytes], bz2.BZ2File(raw)),
    ".xz": _xz,
    ".zst": _zstandard,
}


def decoded(data: bytes, path: Path, line: int = 1) -> str:
    """Text of a file from this line on, without a byte order mark. DataError if it is not UTF-8."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        line += data.count(b"\n", 0, e.start)
        raise DataError(f"{path}:{line}: is not UTF-8 ({e.reason}); convert the file to UTF-8") from None
