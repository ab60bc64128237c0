"""Files of a model directory before any of them is read: each lies in the directory and is as large as it claims."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from minitron_cli.artifacts.license_files import is_license
from minitron_cli.errors import CheckpointError

# Endings of the names of the files that are read, beside license texts.
READ = (".safetensors", ".json", ".model", ".txt", ".jinja", ".masks")
MAX_METADATA_BYTES = 1 << 30
HOLES_FROM_BYTES = 1 << 30  # a smaller file is read in a moment, whatever it holds
LEAST_STORED = 1 / 64  # of a file's size; no file system compresses weights further


def check(path: Path) -> None:
    """Raise CheckpointError for a link that leaves the directory or a file that would take hours to read."""
    inside = os.path.realpath(path)
    for file in _read(path):
        if not _is_inside(target := os.path.realpath(file), inside):
            raise CheckpointError(
                f"{file} is a link to {target}, outside the model's directory: put a copy of the file in its place"
            )
        _check_size(file)


def _read(path: Path) -> Iterator[Path]:
    for folder in (path, path / "additional_chat_templates"):
        if folder.is_dir():
            yield from (f for f in sorted(folder.iterdir()) if f.name.endswith(READ) or is_license(f.name))


def _is_inside(target: str, directory: str) -> bool:
    """Whether a file is in a directory, or among the blobs of the hub's cache that the directory is a snapshot of."""
    if Path(target).is_relative_to(directory):
        return True
    snapshots = Path(directory).parent
    return snapshots.name == "snapshots" and Path(target).parent == snapshots.parent / "blobs"


def _check_size(file: Path) -> None:
    try:
        status = file.stat()
    except OSError:
        return  # what reads the file says that it is missing
    if not stat.S_ISREG(status.st_mode) or status.st_size <= HOLES_FROM_BYTES:
        return
    if status.st_blocks * 512 < status.st_size * LEAST_STORED:
        raise CheckpointError(f"{file} is {status.st_size:,} bytes, almost all of them holes: download it again")
    if file.suffix not in (".safetensors", ".masks") and status.st_size > MAX_METADATA_BYTES:
        raise CheckpointError(f"{file} is {status.st_size:,} bytes, which no model needs: remove it from the directory")
