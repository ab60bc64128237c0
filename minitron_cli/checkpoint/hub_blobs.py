"""Check of downloaded files against the names of the blobs that hold them, which are hashes of their content.

The hub's cache links each file of a snapshot to `blobs/NAME`. NAME is the SHA-256 of a large file, and of a small one
the SHA-1 that git gives it: of "blob", its size, a zero byte and its content.
"""

import hashlib
import re
from pathlib import Path

from minitron_cli.artifacts import file_hashes
from minitron_cli.errors import CheckpointError


def check(snapshot: Path, name: str) -> None:
    """CheckpointError if a file in the snapshot of hub model `name` is not what was downloaded.

    A file that is no link to a blob has no record to compare with.
    """
    blobs = {path: blob for path in sorted(snapshot.rglob("*")) if (blob := _blob(path))}
    for path, found in zip(blobs, _hashes(list(blobs.values())), strict=True):
        if found != blobs[path].name:
            raise CheckpointError(
                f"{path} is not the file that was downloaded: remove {blobs[path]}, then run `hf download {name}`"
            )


def _blob(path: Path) -> Path | None:
    target = path.resolve()
    is_blob = target.parent.name == "blobs" and re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", target.name)
    return target if is_blob and target.is_file() else None


def _hashes(blobs: list[Path]) -> list[str]:
    large = [blob for blob in blobs if len(blob.name) == 64]
    sha256 = {blob: record.sha256 for blob, record in zip(large, file_hashes.records(large), strict=True)}
    return [sha256.get(blob) or _git_sha1(blob.read_bytes()) for blob in blobs]


def _git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
