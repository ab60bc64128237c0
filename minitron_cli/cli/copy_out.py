"""Copy a checkpoint to a directory outside the workspace."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from minitron_cli import io, process_rank, progress
from minitron_cli.cli import output_file
from minitron_cli.errors import InputError

if TYPE_CHECKING:
    from minitron_cli.artifacts.artifact import Artifact


def check_new(directory: Path | None) -> None:
    """Raise InputError if the path exists, or an error if it cannot be made; called before any work is done."""
    if directory is None:
        return
    if os.path.lexists(directory):
        raise InputError(f"{directory} already exists: choose a new path for --output, or leave it out")
    output_file.check_parent(directory)


def copy(artifact: "Artifact", directory: Path | None) -> None:
    """Copy an artifact's files to a new directory, all of them or none.

    Copied, not linked, so that editing the copy cannot change the artifact.
    """
    if directory is None or not process_rank.is_first_process():
        return
    io.make_dirs(directory.parent)
    temporary = io.temporary_dir(directory.parent, directory.name)
    try:
        size = sum(record.size_bytes for record in artifact.manifest.files.values())
        with progress.track(f"copy to {directory}", size, "bytes") as step:
            for name in artifact.manifest.files:
                io.make_dirs((temporary / name).parent)
                io.write_new(temporary / name, _read(artifact.path / name, step))
        published = io.publish(temporary, directory)
    except BaseException:
        io.remove_tree(temporary)
        raise
    if not published:
        io.remove_tree(temporary)
        check_new(directory)
    progress.say(f"copied to {directory}")


def _read(path: Path, step: progress.Step) -> Iterator[bytes]:
    with open(path, "rb") as file:
        while chunk := file.read(io.WRITE_BYTES):
            yield chunk
            step(len(chunk))
