"""The training state on disk: one directory per saved step, whole or not there, never a pickle.

    step-000123/state.safetensors                  every tensor of the run
    step-000123/state-00001-of-00002.safetensors   or, of a sharded run, what each process has of every tensor
    step-000123/state.json                         every other value, the tensors' hashes, and a hash of itself
    best-000100/...                                the same of the best weights so far, alone

What processes have of a tensor are consecutive rows in the order of their files, so that any number of processes can go
on. The directory is written aside and renamed into place. Nothing of the state is optional: a directory that lacks
something, or whose hashes disagree, is no checkpoint.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from minitron_cli import canonical_json, io, progress, strict_json
from minitron_cli.checkpoint.reader import Checkpoint, read_header
from minitron_cli.checkpoint.writer import write_safetensors
from minitron_cli.distill.distributed import ProcessGroup
from minitron_cli.errors import ArtifactError, CheckpointError

SCHEMA_VERSION = 2
TENSORS, RECORD = "state.safetensors", "state.json"
NAME = re.compile(r"(step|best)-(\d{6,})")

Kind = Literal["step", "best"]
KINDS: tuple[Kind, ...] = ("step", "best")


@dataclass(frozen=True)
class Saved:
    """A state on disk."""

    step: int
    record: dict[str, Any]
    """What is not a tensor."""
    parts: tuple[Checkpoint, ...]
    """A file's tensors each: rows of the whole, those of the first part first."""

    def __contains__(self, name: str) -> bool:
        return name in self.parts[0].tensors

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows `start:stop` of the whole tensor; all of it by default."""
        if not self.parts[0].tensors[name].shape:
            return self.parts[0].read(name)
        pieces, first = [], 0
        for part in self.parts:
            count = part.tensors[name].shape[0]
            low, high = max(start - first, 0), count if stop is None else min(stop - first, count)
            if low < high:
                pieces.append(part.read_rows(name, low, high))
            first += count
        info = self.parts[0].tensors[name]
        return torch.cat(pieces) if pieces else torch.empty(0, *info.shape[1:], dtype=info.torch_dtype)


def save(
    scratch: Path,
    run: str,
    step: int,
    tensors: Mapping[str, Tensor],
    record: Mapping[str, Any],
    keep_last: int,
    *,
    kind: Kind = "step",
    group: ProcessGroup | None = None,
) -> None:
    """Commit the state after `step` steps of the run with digest `run`; then remove all but the newest `keep_last`.

    With a `group`, all its processes take part and `tensors` are what each has; else they are the whole.
    """
    rank, size = (group.rank, group.size) if group else (0, 1)
    temporary = _first(group, io.temporary_dir(_made(scratch), _name(kind, step)) if rank == 0 else None)
    assert temporary is not None
    try:
        name = TENSORS if size == 1 else f"state-{rank + 1:05d}-of-{size:05d}.safetensors"
        write_safetensors(temporary / name, tensors)
        written = (name, *io.file_record(temporary / name))
        files = group.all_gather(written) if group else [written]
        if rank == 0:
            content = {"schema": SCHEMA_VERSION, "run": run, "step": step, "files": files, "record": record}
            io.write_new_json(temporary / RECORD, {"sha256": canonical_json.digest(content), "content": content})
            io.publish(temporary, scratch / _name(kind, step))
    finally:
        if rank == 0 and temporary.exists():
            io.remove_tree(temporary)
    if rank == 0:
        for old in _steps(scratch, kind)[:-keep_last]:
            io.remove_tree(scratch / _name(kind, old))


def _first(group: ProcessGroup | None, path: Path | None) -> Path | None:
    return group.broadcast(path) if group else path


def _made(directory: Path) -> Path:
    io.make_dirs(directory)
    return directory


def newest(scratch: Path, run: str) -> int | None:
    """The last step with a sound checkpoint. Damaged ones after it are reported and removed.

    ArtifactError if it is of another run: nobody's work is thrown away for a mistyped path.
    """
    _sweep(scratch)
    for step in reversed(_steps(scratch, "step")):
        path = scratch / _name("step", step)
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


def load(scratch: Path, step: int, kind: Kind = "step") -> Saved:
    """A checkpoint that `newest` has named, or one of the best weights, as `best` has."""
    path = scratch / _name(kind, step)
    content = strict_json.load(path / RECORD)["content"]
    parts = tuple(Checkpoint(path, {}, read_header(path / name)) for name, *_ in content["files"])
    return Saved(step, content["record"], parts)


def has_best(scratch: Path, run: str, step: int) -> bool:
    """Whether the best weights of this step are there and sound."""
    path = scratch / _name("best", step)
    try:
        return bool(_verified(path)["run"] == run)
    except (CheckpointError, FileNotFoundError, KeyError, TypeError):
        return False


def forget_best(scratch: Path, first: int) -> None:
    """Remove the best weights of step `first` and later ones."""
    for step in _steps(scratch, "best"):
        if step >= first:
            io.remove_tree(scratch / _name("best", step))


def clear(scratch: Path) -> None:
    """Remove every checkpoint."""
    _sweep(scratch)
    for kind in KINDS:
        for step in _steps(scratch, kind):
            io.remove_tree(scratch / _name(kind, step))


def _name(kind: Kind, step: int) -> str:
    return f"{kind}-{step:06d}"


def _steps(scratch: Path, kind: Kind) -> list[int]:
    """Of all checkpoints of a kind, sound or not, in ascending order."""
    if not scratch.is_dir():
        return []
    found = (NAME.fullmatch(path.name) for path in scratch.iterdir())
    return sorted(int(name[2]) for name in found if name and name[1] == kind)


def _sweep(scratch: Path) -> None:
    """Remove what a killed save left; a run is the only writer in its scratch directory."""
    if scratch.is_dir():
        io.sweep(scratch)


def _verified(path: Path) -> dict[str, Any]:
    """What state.json says. CheckpointError and the like unless every byte is as it was written."""
    outer = strict_json.load(path / RECORD)
    content = outer["content"]
    if canonical_json.digest(content) != outer["sha256"]:
        raise CheckpointError(f"{RECORD} has changed")
    if content["schema"] != SCHEMA_VERSION:
        raise CheckpointError(f"{RECORD} has schema {content['schema']}")
    written = {name: io.FileRecord(*record) for name, *record in content["files"]}
    for name, record in zip(written, io.file_records(path / name for name in written), strict=True):
        if record != written[name]:
            raise CheckpointError(f"{name} has changed")
    return dict(content)
