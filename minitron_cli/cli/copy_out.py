"""Hand a checkpoint to the user: a directory of its own, outside the workspace."""

from collections.abc import Iterator
from pathlib import Path

from minitron_cli import io, process_rank, progress
from minitron_cli.artifacts.artifact import Artifact
from minitron_cli.errors import InputError


def check_new(directory: Path | None) -> None:
    """Refuse a directory that is there, before any work is done: nothing is written over."""
    if directory is not None and directory.exists():
        raise InputError(f"{directory} exists, and nothing is written over: choose a new directory for --output")


def copy(artifact: Artifact, directory: Path | None) -> None:
    """Copy an artifact's files to a new directory, all of them or none.

    Copied, not linked: an artifact must not change when somebody edits what they were given.
    """
    if directory is None or not process_rank.is_first_process():
        return
    io.make_dirs(directory.parent)
    temporary = io.temporary_dir(directory.parent, directory.name)
    try:
        size = sum(record.size_bytes for record in artifact.manifest.files.values())
        with progress.track(f"copy to {directory}", size, "bytes") as step:
            for name in artifact.manifest.files:
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
