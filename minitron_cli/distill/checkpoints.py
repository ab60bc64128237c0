"""The training state on disk: one directory per saved step, whole or not there, never a pickle.

    step-000123/state.safetensors    every tensor of the run
    step-000123/state.json           every other value, the hash of the tensors, and a hash of itself

The directory is written aside and renamed into place. Nothing of the state is optional: a directory that lacks
something, or whose hashes disagree, is no checkpoint.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from minitron_cli import io, progress
from minitron_cli.checkpoint import strict_json
from minitron_cli.checkpoint.reader import read_safetensors
from minitron_cli.checkpoint.writer import write_safetensors
from minitron_cli.errors import ArtifactError, CheckpointError

SCHEMA_VERSION = 1
TENSORS, RECORD = "state.safetensors", "state.json"
STEP_NAME = re.compile(r"step-(\d{6,})")


class Saved(NamedTuple):
    step: int
    tensors: dict[str, Tensor]
    record: dict[str, Any]


def save(
    scratch: Path, run: str, step: int, tensors: Mapping[str, Tensor], record: Mapping[str, Any], keep_last: int
) -> None:
    """Commit the state after `step` steps of the run with digest `run`; then remove all but the newest `keep_last`."""
    io.make_dirs(scratch)
    temporary = io.temporary_dir(scratch, _name(step))
    try:
        write_safetensors(temporary / TENSORS, tensors)
        file = io.file_record(temporary / TENSORS)
        content = {"schema": SCHEMA_VERSION, "run": run, "step": step, "tensors": file._asdict(), "record": record}
        io.write_new_json(temporary / RECORD, {"sha256": io.digest(content), "content": content})
        io.publish(temporary, scratch / _name(step))
    finally:
        if temporary.exists():
            io.remove_tree(temporary)
    for old in _steps(scratch)[:-keep_last]:
        io.remove_tree(scratch / _name(old))


def newest(scratch: Path, run: str) -> int | None:
    """The last step with a sound checkpoint. Damaged ones after it are reported and removed.

    ArtifactError if it is of another run: nobody's work is thrown away for a mistyped path.
    """
    _sweep(scratch)
    for step in reversed(_steps(scratch)):
        path = scratch / _name(step)
        try:
            content = _verified(path)
        except (CheckpointError, FileNotFoundError, KeyError, TypeError) as e:
            progress.warn(f"{path} is damaged ({e}); an older checkpoint is used")
            io.remove_tree(path)
            continue
        if content["run"] != run:
            raise ArtifactError(f"{path} is a checkpoint of another run: give --no-resume to start over")
        return step
    return None


def load(scratch: Path, step: int) -> Saved:
    """A checkpoint that `newest` has named."""
    path = scratch / _name(step)
    return Saved(step, read_safetensors(path / TENSORS), strict_json.load(path / RECORD)["content"]["record"])


def clear(scratch: Path) -> None:
    """Remove every checkpoint."""
    _sweep(scratch)
    for step in _steps(scratch):
        io.remove_tree(scratch / _name(step))


def _name(step: int) -> str:
    return f"step-{step:06d}"


def _steps(scratch: Path) -> list[int]:
    """Of all checkpoints, sound or not, in ascending order."""
    if not scratch.is_dir():
        return []
    return sorted(int(found[1]) for path in scratch.iterdir() if (found := STEP_NAME.fullmatch(path.name)))


def _sweep(scratch: Path) -> None:
    """Remove what a killed save left; a run is the only writer in its scratch directory."""
    if scratch.is_dir():
        io.sweep(scratch)


def _verified(path: Path) -> dict[str, Any]:
    """What state.json says. CheckpointError and the like unless every byte is as it was written."""
    outer = strict_json.load(path / RECORD)
    content = outer["content"]
    if io.digest(content) != outer["sha256"]:
        raise CheckpointError(f"{RECORD} has changed")
    if content["schema"] != SCHEMA_VERSION:
        raise CheckpointError(f"{RECORD} has schema {content['schema']}")
    if io.file_record(path / TENSORS)._asdict() != content["tensors"]:
        raise CheckpointError(f"{TENSORS} has changed")
    return dict(content)
