"""Content hashes of model directories, independent of path and time.

Hashing 16 GB takes ten seconds, so file hashes are cached by (device, inode, size, times).
"""

import json
import os
from pathlib import Path

from minitron_cli import canonical_json, io, progress, strict_json
from minitron_cli.artifacts.manifest import MANIFEST, RUN
from minitron_cli.results.base import RESULT

_Stat = tuple[int, int, int, int, int]


def of_directory(directory: Path) -> str:
    """Content hash of all files of a model: weights, configs, tokenizer."""
    paths = sorted(p for p in directory.iterdir() if p.is_file() and _matters(p.name))
    return canonical_json.digest({path.name: sha256 for path, sha256 in zip(paths, _hashes(paths), strict=True)})


def of_tokenizer(directory: Path) -> str:
    """Content hash of the tokenizer's files."""
    names = (
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "tokenizer.model",
        "vocab.json",
        "merges.txt",
    )
    return canonical_json.digest({n: io.file_record(directory / n).sha256 for n in names if (directory / n).is_file()})


def _matters(name: str) -> bool:
    suffixes = (".safetensors", ".json", ".model", ".txt", ".jinja")
    return name.endswith(suffixes) and not name.startswith(".") and name not in (MANIFEST, RUN, RESULT)


def _hashes(paths: list[Path]) -> list[str]:
    known = _Known()
    missing = [path for path in paths if known.get(path) is None]
    if missing:
        with progress.track("hash the model", sum(p.stat().st_size for p in missing), "bytes") as step:
            before = [_stat(path) for path in missing]
            for stat, record in zip(before, io.file_records(missing), strict=True):
                known.put(stat, record.sha256)
                step(record.size_bytes)
        known.save()
    return [known.get(path) or io.file_record(path).sha256 for path in paths]


class _Known:
    """Cache of file hashes in the user's cache directory. It may be deleted at any time."""

    def __init__(self) -> None:
        self.path = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "minitron" / "hashes.json"
        try:
            self._hashes = strict_json.load(self.path)
        except (OSError, ValueError):
            self._hashes = {}

    def get(self, path: Path) -> str | None:
        return self._hashes.get(json.dumps(_stat(path)))

    def put(self, stat: _Stat, sha256: str) -> None:
        self._hashes[json.dumps(stat)] = sha256

    def save(self) -> None:
        try:
            io.make_dirs(self.path.parent)
            io.replace(self.path, canonical_json.pretty(self._hashes))
        except OSError:
            pass  # a read-only cache only costs time


def _stat(path: Path) -> _Stat:
    s = path.stat()
    return s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns
