"""Token ids on disk: written once, checked before they are trusted, mapped into memory. Knows no text and no block.

A directory of `tokens.bin` (all ids, uint16 or uint32), `starts.bin` (where each document begins in it, int64),
`loss_mask.bin` if some tokens may not count (a byte of 0 or 1 each) and `header.json`. All numbers are little-endian.
A long corpus is written in parts, directories of the same form, which are joined at the end: a killed run continues
after the last part that it finished.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from minitron_cli import canonical_json, io, progress
from minitron_cli.artifacts import file_hashes
from minitron_cli.data.rows import Ids
from minitron_cli.errors import DataError, EnvironmentFault

TOKENS, STARTS, LOSS_MASK, HEADER = "tokens.bin", "starts.bin", "loss_mask.bin", "header.json"
START_DTYPE = "<i8"
PART_TOKENS = 1 << 26  # a minute's work of one core
PARTS = ".parts"  # suffix of the directory's name
COPY_BYTES = 16 << 20

ReadPosition = list[list[int]]
"""Documents and tokens read so far from each source."""
Documents = Callable[[ReadPosition | None], Iterable[tuple[Ids, ReadPosition]]]
"""Documents after a position (None: all), each with the position after it."""


class TokenFile(NamedTuple):
    """Concatenated documents, mapped from disk."""

    tokens: np.ndarray
    """Token ids."""
    starts: np.ndarray
    """Offset of each document's first token, ascending."""
    loss_mask: np.ndarray | None
    """Whether each token is scored; None if all are."""
    fingerprint: str
    """Hash of the content, independent of its path."""


def find(directory: Path, key: str) -> TokenFile | None:
    """Token file in `directory`; None if it is missing, has another key, or is damaged.

    Large files whose times have not changed since they were last hashed are not read again.
    """
    header = _header(directory)
    if header is None or header["key"] != key or damage(directory):
        return None
    return TokenFile(
        tokens=np.memmap(directory / TOKENS, header["dtype"], mode="r"),
        starts=np.memmap(directory / STARTS, START_DTYPE, mode="r"),
        loss_mask=np.memmap(directory / LOSS_MASK, bool, mode="r") if (directory / LOSS_MASK).is_file() else None,
        fingerprint=canonical_json.digest(header["sha256"]),
    )


def finished(directory: Path) -> list[Path]:
    """Directories of the token files below a directory, damaged ones too; not those that a run is writing."""
    is_unfinished = (io.TEMPORARY, PARTS)
    found = directory.iterdir() if directory.is_dir() else ()
    return sorted(p for p in found if p.is_dir() and not any(mark in p.name for mark in is_unfinished))


def damage(directory: Path, hashed: file_hashes.Hash = file_hashes.records) -> str | None:
    """Name of the first file that is not as it was written, by the hashes that `hashed` returns; None if all are."""
    header = _header(directory)
    if header is None:
        return HEADER
    names = [name for name in (TOKENS, STARTS, LOSS_MASK) if (directory / name).is_file()]
    written = dict(zip((TOKENS, STARTS, LOSS_MASK), header["sha256"], strict=False))
    found = {name: r.sha256 for name, r in zip(names, hashed([directory / name for name in names]), strict=True)}
    return next((name for name in written | found if written.get(name) != found.get(name)), None)


def create(
    directory: Path,
    key: str,
    vocab_size: int,
    documents: Documents,
    has_loss_mask: bool,
    about: Mapping[str, Any] = MappingProxyType({}),
) -> TokenFile:
    """Write the documents under a temporary name, read them back, rename: a killed run leaves nothing at `directory`.

    It leaves its finished parts beside it, and the next run continues after them. EnvironmentFault if the disk returns
    other bytes than were written. `about` is added to the header, for readers.
    """
    if directory.exists() and find(directory, key) is None:
        progress.warn(f"{directory} is damaged; the data are tokenized again")
        io.remove_tree(directory)
    io.make_dirs(directory.parent)
    _sweep(directory.parent)
    try:
        dtype = "<u2" if vocab_size <= 1 << 16 else "<u4"
        _TokenFileWriter(directory, key, dtype, has_loss_mask, about).do(documents)
    except FileNotFoundError:  # another process has finished the same file and removed the parts
        if find(directory, key) is None:
            raise
    file = find(directory, key)
    assert file
    return file


def _sweep(directory: Path) -> None:
    """Remove what killed runs left, except parts of files that are not finished."""
    io.sweep(directory)
    for parts in directory.glob(f"*{PARTS}"):
        if parts.with_suffix("").exists():
            io.remove_tree(parts)


class _TokenFileWriter:
    """Writes one token file, in parts if it is long."""

    def __init__(self, directory: Path, key: str, dtype: str, has_loss_mask: bool, about: Mapping[str, Any]) -> None:
        self.directory, self.key, self.dtype, self.about = directory, key, dtype, about
        self.names = (TOKENS, STARTS, LOSS_MASK) if has_loss_mask else (TOKENS, STARTS)
        self.parts_directory = directory.with_name(directory.name + PARTS)

    def do(self, documents: Documents) -> None:
        """Continue after the finished parts, and publish the whole."""
        parts = self._sound_parts()
        place = _header_of(parts[-1])["to"] if parts else None
        if place:
            progress.say(f"continuing tokenization after {sum(tokens for _, tokens in place):,} tokens")
        try:
            self._write_all(iter(documents(place)), parts, place)
        except DataError:
            io.remove_tree(self.parts_directory)  # their source is broken or has changed
            raise
        io.remove_tree(self.parts_directory)

    def _write_all(
        self, stream: Iterator[tuple[Ids, ReadPosition]], parts: list[Path], place: ReadPosition | None
    ) -> None:
        first = next(stream, None)
        while first is not None:
            with _temporary(self.directory) as temporary:
                place = self._write(temporary, chain([first], stream), place)
                first = next(stream, None)
                if first is None and not parts:
                    io.publish(temporary, self.directory)
                    return
                io.make_dirs(self.parts_directory)
                parts.append(self.parts_directory / _part_name(len(parts)))
                io.publish(temporary, parts[-1])
        with _temporary(self.directory) as temporary:
            self._join(temporary, parts)
            io.publish(temporary, self.directory)

    def _write(
        self, directory: Path, documents: Iterable[tuple[Ids, ReadPosition]], place: ReadPosition | None
    ) -> ReadPosition:
        """Write documents until a part is full; the position after the last of them."""
        end, position = place, 0
        with self._new_files(directory) as (tokens, starts, *masks):
            for ids, behind in documents:
                end = behind
                starts.write(np.array(position, START_DTYPE).tobytes())
                tokens.write(ids.ids.astype(self.dtype).tobytes())
                for file in masks:
                    file.write(_all_or(ids).tobytes())
                position += len(ids.ids)
                if position >= PART_TOKENS:
                    break
        assert end is not None
        self._seal(directory, [tokens, starts, *masks], {"from": place, "to": end})
        return end

    def _join(self, directory: Path, parts: Iterable[Path]) -> None:
        """Write the concatenation of the parts."""
        with self._new_files(directory) as (tokens, starts, *masks):
            for part in parts:
                base = tokens.size_bytes // np.dtype(self.dtype).itemsize
                starts.write((np.fromfile(part / STARTS, START_DTYPE) + base).astype(START_DTYPE).tobytes())
                for file in (tokens, *masks):
                    _copy(part / file.path.name, file)
        self._seal(directory, [tokens, starts, *masks], {})

    @contextmanager
    def _new_files(self, directory: Path) -> Iterator[list[io.NewFile]]:
        with ExitStack() as opened:
            yield [opened.enter_context(io.new_file(directory / name)) for name in self.names]

    def _seal(self, directory: Path, written: list[io.NewFile], more: dict[str, Any]) -> None:
        sha256 = [file.record().sha256 for file in written]
        if [record.sha256 for record in file_hashes.fresh([file.path for file in written])] != sha256:
            raise EnvironmentFault(
                f"{directory}: the disk returns other bytes than were written; check it and run again"
            )
        header = {"key": self.key, "dtype": self.dtype, "sha256": sha256} | more | dict(self.about)
        io.write_new_json(directory / HEADER, header | {"header_sha256": canonical_json.digest(header)})

    def _sound_parts(self) -> list[Path]:
        """Finished parts of an earlier run, as far as each continues the one before; others are removed."""
        parts: list[Path] = []
        place = None
        for part in sorted(self.parts_directory.glob("*")):
            header = _header(part) if find(part, self.key) else None
            if header and part.name == _part_name(len(parts)) and header["from"] == place:
                parts.append(part)
                place = header["to"]
            else:
                io.remove_tree(part)
        return parts


def _part_name(i: int) -> str:
    return f"{i:05}"


@contextmanager
def _temporary(directory: Path) -> Iterator[Path]:
    temporary = io.temporary_dir(directory.parent, directory.name)
    try:
        yield temporary
    finally:
        io.remove_tree(temporary)  # gone already if it was published


def _copy(path: Path, file: io.NewFile) -> None:
    with open(path, "rb") as source:
        while piece := source.read(COPY_BYTES):
            file.write(piece)
            progress.raise_if_stopped()


def _all_or(document: Ids) -> np.ndarray:
    return np.ones(len(document.ids), bool) if document.loss_mask is None else document.loss_mask


def _header(directory: Path) -> dict[str, Any] | None:
    """Header of a token file; None if it is missing or its own hash shows damage."""
    try:
        header = json.loads((directory / HEADER).read_bytes())
        is_whole = header.pop("header_sha256") == canonical_json.digest(header)
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return header if is_whole else None


def _header_of(directory: Path) -> dict[str, Any]:
    header = _header(directory)
    assert header
    return header
