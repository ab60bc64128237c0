"""`runs/<name>/`: where a model's artifacts live side by side, and which of them are current."""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from minitron_cli import canonical_json, io, progress, strict_json
from minitron_cli.artifacts.artifact import Artifact
from minitron_cli.errors import ArtifactError, InputError

SETTINGS = "settings.json"
LOCK = ".lock"
CURRENT = "current"  # a file: in a stage's directory the current artifact, in the root the current workspace


@dataclass(frozen=True)
class Workspace:
    root: Path

    @property
    def name(self) -> str:
        return self.root.name

    def stage_dir(self, stage: str) -> Path:
        return self.root / stage

    def artifacts(self, stage: str) -> list[Artifact]:
        """Every readable artifact of a stage, by directory name."""
        if not self.stage_dir(stage).is_dir():
            return []
        paths = sorted(p for p in self.stage_dir(stage).iterdir() if p.is_dir() and not p.name.startswith("."))
        return [artifact for path in paths if (artifact := _readable(path))]

    def current(self, stage: str) -> Artifact | None:
        """The artifact that the stage made last, or None."""
        pointer = self.stage_dir(stage) / CURRENT
        if not pointer.is_file():
            return None
        name = pointer.read_text(errors="replace").strip()
        path = self.stage_dir(stage) / name
        return Artifact.open(path) if name == path.name and os.path.isdir(path) else None

    def require(self, stage: str, command: str) -> Artifact:
        """The current artifact of a stage. ArtifactError names the command that makes it."""
        artifact = self.current(stage)
        if artifact is None:
            raise ArtifactError(f"workspace {self.root} has no {stage} result: run `{command}` first")
        return artifact

    def point(self, artifact: Artifact) -> None:
        """Make an artifact the current one of its stage."""
        pointer = self.stage_dir(artifact.stage) / CURRENT
        content = f"{artifact.path.name}\n".encode()
        if not pointer.is_file() or pointer.read_bytes() != content:
            io.replace(pointer, content)

    @property
    def settings(self) -> dict[str, Any]:
        """What later verbs may leave unsaid: the parent model and the data. Intent, not identity."""
        path = self.root / SETTINGS
        return strict_json.load(path) if path.is_file() else {}

    def save_settings(self, **changes: Any) -> None:
        io.make_dirs(self.root)
        merged = self.settings | changes
        if merged != self.settings:
            io.replace(self.root / SETTINGS, canonical_json.pretty(merged))

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep a second process from doing the same work. Correctness never depends on it."""
        io.make_dirs(self.root)
        lock = FileLock(self.root / LOCK)
        _acquire(lock, self.root)
        try:
            yield
        finally:
            _remove_if_empty(self.root)  # while nobody else can begin to fill it
            lock.release()


def _readable(path: Path) -> Artifact | None:
    try:
        return Artifact.open(path)
    except ArtifactError as e:
        progress.warn(f"passed over: {e}")
        return None


def _remove_if_empty(root: Path) -> None:
    """A verb that was refused before it wrote anything leaves no workspace behind."""
    if root.is_dir() and {path.name for path in root.iterdir()} <= {LOCK}:
        io.remove_tree(root)
        if not any(root.parent.iterdir()):
            io.disk.remove_dir(root.parent)


def _acquire(lock: FileLock, root: Path) -> None:
    waiting = False
    while True:
        try:
            lock.acquire(timeout=1 if waiting else 2)
            return
        except Timeout:
            if not waiting:
                progress.say(f"waiting for another minitron that is working in {root}")
            waiting = True
            progress.raise_if_stopped()
        except OSError as e:
            if e.errno not in (errno.ENOTSUP, errno.ENOLCK):
                raise
            progress.warn(f"{root} is on a file system without locks: do not run two minitrons in it at once")
            return


def open_workspace(runs: Path, name: str | None, *, default: str | None = None) -> Workspace:
    """The workspace called `name`, else `default`, else the one used last."""
    name = name or default or last_used(runs)
    if name is None:
        raise ArtifactError(
            f"{runs} has no current workspace: name one with --run, or start with `minitron importance MODEL`"
        )
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise InputError(f"workspace name {name!r}: use letters, digits, '.', '_' and '-'")
    return Workspace(runs / name)


def last_used(runs: Path) -> str | None:
    pointer = runs / CURRENT
    return pointer.read_text().strip() if pointer.is_file() else None


def remember(workspace: Workspace) -> None:
    """Make a workspace the one that verbs without --run use."""
    pointer = workspace.root.parent / CURRENT
    if last_used(workspace.root.parent) != workspace.name:
        io.replace(pointer, f"{workspace.name}\n".encode())


def slug(text: str) -> str:
    """A workspace name for a model: its last path component, tidied."""
    tail = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(text).name or "model").strip("-.")
    return tail.lower() or "model"
