"""Token ids on disk: written once, checked before they are trusted, mapped into memory. Knows no text and no block.

A directory of `tokens.bin` (all ids, uint16 or uint32), `starts.bin` (where each document begins in it, int64),
`counts.bin` if some tokens may not count (a byte of 0 or 1 each) and `header.json`. All numbers are little-endian.
"""

import hashlib
import json
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minitron_cli import io, progress
from minitron_cli.data import files
from minitron_cli.data.rows import Ids
from minitron_cli.errors import EnvironmentFault

TOKENS, STARTS, COUNTS, HEADER = "tokens.bin", "starts.bin", "counts.bin", "header.json"
START_DTYPE = "<i8"
STRETCHES, SAMPLE_BYTES = 16, 16 << 20


class TokenFile(NamedTuple):
    """Documents one after the other, on disk."""

    tokens: np.ndarray
    starts: np.ndarray
    """The offset of each document's first token, ascending."""
    counts: np.ndarray | None
    """Whether each token counts; None if all do."""
    fingerprint: str
    """A hash of all of it, wherever it lies."""


def find(directory: Path, key: str) -> TokenFile | None:
    """What was written to `directory` under `key`; None if it is not there, or samples show that it was damaged."""
    header = _header(directory)
    if header is None or header["key"] != key or _samples(directory) != header["samples"]:
        return None
    return TokenFile(
        tokens=np.memmap(directory / TOKENS, header["dtype"], mode="r"),
        starts=np.memmap(directory / STARTS, START_DTYPE, mode="r"),
        counts=np.memmap(directory / COUNTS, bool, mode="r") if (directory / COUNTS).is_file() else None,
        fingerprint=io.digest(header["sha256"]),
    )


def create(directory: Path, key: str, vocab_size: int, documents: Iterable[Ids], has_counts: bool) -> TokenFile:
    """Write the documents under another name, read them back, rename: a killed run leaves nothing at `directory`."""
    if directory.exists() and find(directory, key) is None:
        progress.warn(f"{directory}: is damaged; the data are tokenised again")
        io.remove_tree(directory)
    io.make_dirs(directory.parent)
    io.sweep(directory.parent)
    temporary = io.temporary_dir(directory.parent, directory.name)
    try:
        _write(temporary, key, "<u2" if vocab_size <= 1 << 16 else "<u4", documents, has_counts)
        io.publish(temporary, directory)
    finally:
        io.remove_tree(temporary)  # not there any more if it was published
    file = find(directory, key)
    assert file
    return file


def _write(directory: Path, key: str, dtype: str, documents: Iterable[Ids], has_counts: bool) -> None:
    position = 0
    with ExitStack() as opened:
        tokens, starts = (opened.enter_context(io.new_file(directory / name)) for name in (TOKENS, STARTS))
        counts = opened.enter_context(io.new_file(directory / COUNTS)) if has_counts else None
        for document in documents:
            starts.write(np.array(position, START_DTYPE).tobytes())
            tokens.write(document.ids.astype(dtype).tobytes())
            if counts:
                counts.write(_all_or(document).tobytes())
            position += len(document.ids)
    written = [file for file in (tokens, starts, counts) if file]
    sha256 = [file.record().sha256 for file in written]
    if files.hashed([file.path for file in written]) != sha256:
        raise EnvironmentFault(f"{directory}: the disk returns other bytes than were written; check it and run again")
    header = {"key": key, "dtype": dtype, "sha256": sha256, "samples": _samples(directory)}
    io.write_new_json(directory / HEADER, header | {"header_sha256": io.digest(header)})


def _all_or(document: Ids) -> np.ndarray:
    return np.ones(len(document.ids), bool) if document.counts is None else document.counts


def _header(directory: Path) -> dict[str, Any] | None:
    """The header, if its own hash says that it is whole."""
    try:
        header = json.loads((directory / HEADER).read_bytes())
        is_whole = header.pop("header_sha256") == io.digest(header)
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return header if is_whole else None


def _samples(directory: Path) -> list[str]:
    return [_sample(path) for path in (directory / name for name in (TOKENS, STARTS, COUNTS)) if path.is_file()]


def _sample(path: Path) -> str:
    """A hash of the ends of STRETCHES equal stretches, and so of the whole file unless it is large.

    A complete hash of a hundred billion tokens would keep every stage waiting for minutes.
    """
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with open(path, "rb") as file:
        for i in range(STRETCHES):
            start, stop = i * size // STRETCHES, (i + 1) * size // STRETCHES
            file.seek(max(start, stop - SAMPLE_BYTES))
            digest.update(file.read(stop - file.tell()))
    return digest.hexdigest()
