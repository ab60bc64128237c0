"""Content hashes of files, remembered between runs. Knows no model and no artifact.

Hashing 16 GB takes ten seconds, so the hash of a large file is kept with its device, inode, size and times. Whatever
writes to a file changes its ctime, which no program can set back. A failing disk leaves the times alone: only `fresh`
reads every byte again.
"""

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from minitron_cli import canonical_json, io, progress, strict_json

LARGE_BYTES = 1 << 20  # a smaller file is hashed faster than the cache is read
SHOWN_BYTES = 1 << 28  # worth a progress bar
TICK_NS = 100_000_000  # two changes within one tick of a file system's clock leave the same times
COARSE_TICK_NS = 2_000_000_000  # of a file system that keeps whole seconds
MAX_KNOWN = 20_000  # hashes in the cache, the oldest of which go first

HASHES, SEAL = "hashes", "sha256"  # keys of the cache

Hash = Callable[[Sequence[Path]], Sequence[io.FileRecord]]
"""Hashes and sizes of files, in their order."""

_known: dict[str, str] = {}  # what this process has hashed, in case the cache cannot be written


def records(paths: Sequence[Path]) -> list[io.FileRecord]:
    """Hash and size of each file. A large file is read once, and again only after it has changed."""
    sizes = {path: path.stat().st_size for path in paths}
    known = _stored() | _known if any(size >= LARGE_BYTES for size in sizes.values()) else {}
    hashes = {path: sha256 for path in paths if (sha256 := known.get(_state(path)))}
    missing = [path for path in paths if path not in hashes]
    hashed = dict(zip(missing, _with_progress(missing, sum(sizes[path] for path in missing)), strict=True))
    return [hashed.get(path) or io.FileRecord(hashes[path], sizes[path]) for path in paths]


def fresh(paths: Sequence[Path], step: Callable[[int], None] = lambda size_bytes: None) -> list[io.FileRecord]:
    """Hash and size of each file from all of its bytes, which `records` then knows. `step` is told of each file."""
    before = list(map(_state, paths))
    found = list(_stepping(io.file_records(paths), step))
    _remember(
        {
            state: record.sha256
            for path, state, record in zip(paths, before, found, strict=True)
            if record.size_bytes >= LARGE_BYTES and state == _state(path) and _is_settled(path)
        }
    )
    return found


def _with_progress(paths: Sequence[Path], size_bytes: int) -> list[io.FileRecord]:
    if size_bytes < SHOWN_BYTES:
        return fresh(paths)
    with progress.track("hash the files", size_bytes, "bytes") as step:
        return fresh(paths, step)


def _stepping(found: Iterable[io.FileRecord], step: Callable[[int], None]) -> Iterable[io.FileRecord]:
    for record in found:
        yield record
        step(record.size_bytes)


def _state(path: Path) -> str:
    """Key of a file's content in the cache: it changes with every change of the content."""
    s = path.stat()
    return json.dumps([s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns])


def _is_settled(path: Path) -> bool:
    """Whether a change from now on will change the file's times."""
    changed_ns = path.stat().st_ctime_ns
    return time.time_ns() - changed_ns > (TICK_NS if changed_ns % 10**9 else COARSE_TICK_NS)


def _remember(hashes: Mapping[str, str]) -> None:
    if not hashes.keys() - _known.keys():
        return
    _known.update(hashes)
    path = _cache()
    if path is None:
        return
    newest = list((_stored() | _known).items())[-MAX_KNOWN:]
    try:
        io.make_dirs(path.parent)
        content = {HASHES: dict(newest), SEAL: canonical_json.digest(dict(newest))}
        io.replace(path, json.dumps(content, indent=0).encode())
    except OSError:
        pass  # a read-only cache only costs time


def _stored() -> dict[str, str]:
    """Hashes in the cache; none if it is damaged."""
    path = _cache()
    try:
        content = strict_json.load(path) if path else {}
    except (OSError, ValueError):
        return {}
    hashes = content.get(HASHES)
    return hashes if isinstance(hashes, dict) and content.get(SEAL) == canonical_json.digest(hashes) else {}


def _cache() -> Path | None:
    """File in the user's cache; None for a user without a home."""
    cache = io.user_cache()
    return cache / "hashes.json" if cache else None
