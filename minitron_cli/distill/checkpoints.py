"""The training state on disk: one directory per saved step, complete or absent, never a pickle.

    step-000123/state.safetensors                  every tensor of the run
    step-000123/state-00001-of-00002.safetensors   or, if sharded, each process's rows of every tensor
    step-000123/state.json                         all other values, the files' hashes, and a hash of itself
    best-000100/...                                the weights of the best evaluation so far

The rows of the processes are consecutive, in the order of the files, so any number of processes can resume. The
directory is written under a temporary name and renamed into place. Every part is required: a directory that lacks one,
or whose hashes disagree, is not a checkpoint.
"""

import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from minitron_cli import canonical_json, io, progress, strict_json
from minitron_cli.checkpoint.reader import Checkpoint
from minitron_cli.checkpoint.safetensors_file import read_header
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
    """A saved state."""

    step: int
    record: dict[str, Any]
    """Values that are not tensors."""
    parts: tuple[Checkpoint, ...]
    """One per file: consecutive rows of every tensor."""

    def __contains__(self, name: str) -> bool:
        return name in self.parts[0].tensors

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows `start:stop` of a tensor; all of it by default."""
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
    keep_last: int | None,
    *,
    kind: Kind = "step",
    group: ProcessGroup | None = None,
) -> None:
    """Commit the state after `step` steps of the run with digest `run`; then remove all but the newest `keep_last`
    (None: remove none).

    With a `group`, all its processes call this with their rows as `tensors`; without, `tensors` are whole.
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
            sealed = {"sha256": canonical_json.digest(content), "content": content}
            io.write_new(temporary / RECORD, canonical_json.compact(sealed))
            io.publish(temporary, scratch / _name(kind, step))
    finally:
        if rank == 0 and temporary.exists():
            io.remove_tree(temporary)
    if rank == 0 and keep_last:
        for old in _steps(scratch, kind)[:-keep_last]:
            io.remove_tree(scratch / _name(kind, old))


def _first(group: ProcessGroup | None, path: Path | None) -> Path | None:
    return group.broadcast(path) if group else path


def _made(directory: Path) -> Path:
    io.make_dirs(directory)
    return directory


def newest(scratch: Path, run: str) -> int | None:
    """Last step with a valid checkpoint, or None. Damaged checkpoints after it are reported and removed.

    ArtifactError if it belongs to another run, whose work a mistyped path must not delete.
    """
    _sweep(scratch)
    for step in reversed(_steps(scratch, "step")):
        path = scratch / _name("step", step)
        try:
            content = _verified(path)
        except (CheckpointError, FileNotFoundError, KeyError, TypeError) as e:
            progress.warn(f"{path} is damaged ({e}); continuing from the checkpoint before it")
            io.remove_tree(path)
            continue
        if content["run"] != run:
            raise ArtifactError(f"{path} is a checkpoint of another run: give --no-resume to start over")
        return step
    return None


def load(scratch: Path, step: int, kind: Kind = "step") -> Saved:
    """Checkpoint of a step that `newest` returned, or best weights that `has_best` confirmed."""
    path = scratch / _name(kind, step)
    content = _outer(path)["content"]
    parts = tuple(Checkpoint(path, {}, read_header(path / name)) for name, *_ in content["files"])
    return Saved(step, content["record"], parts)


def has_best(scratch: Path, run: str, step: int) -> bool:
    """Whether valid best weights of this step are stored."""
    path = scratch / _name("best", step)
    try:
        return bool(_verified(path)["run"] == run)
    except (CheckpointError, FileNotFoundError, KeyError, TypeError):
        return False


def keep_best(scratch: Path, wanted: Callable[[int], bool]) -> None:
    """Remove best weights of all steps but the wanted ones."""
    for step in _steps(scratch, "best"):
        if not wanted(step):
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
    """Steps of all checkpoints of a kind, valid or not, ascending."""
    if not scratch.is_dir():
        return []
    found = (NAME.fullmatch(path.name) for path in scratch.iterdir())
    return sorted(int(name[2]) for name in found if name and name[1] == kind)


def _sweep(scratch: Path) -> None:
    """Remove what a killed save left. A run is the only writer in its scratch directory."""
    if scratch.is_dir():
        io.sweep(scratch)


def _verified(path: Path) -> dict[str, Any]:
    """Content of state.json. CheckpointError, FileNotFoundError, KeyError or TypeError if anything is damaged."""
    outer = _outer(path)
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


def _outer(path: Path) -> dict[str, Any]:
    """A checkpoint's state.json, of any size: its curves have a row for each step of the run."""
    return strict_json.load(path / RECORD, max_bytes=sys.maxsize)
