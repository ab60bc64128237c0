"""Workspaces, `runs/<name>/`: artifacts of one model by stage, and which of them are current."""

import errno
import os
import re
import shlex
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from minitron_cli import canonical_json, io, progress, strict_json
from minitron_cli.artifacts.artifact import Artifact
from minitron_cli.errors import ArtifactError, CheckpointError, InputError

SETTINGS = "settings.json"
GIVEN = "given.json"
OVERWRITING = "overwriting.json"
LOCK = ".lock"
TOKENS = "tokens"
STUDY_RUNS = "study/runs"
"""Directory of the workspace in which studies run."""
REMOVALS = 100  # of its directory, before a process that acquires a lock takes them for an error
CURRENT = "current"  # a file: in a stage's directory the current artifact, in the root the current workspace


@dataclass(frozen=True)
class Workspace:
    """Directory with the artifacts of one model."""

    root: Path
    text_of: "Workspace | None" = None
    """Workspace whose tokenized text this one reads and adds to; None: its own."""

    @property
    def name(self) -> str:
        return self.root.name

    @property
    def tokens(self) -> Path:
        """Directory of tokenized text."""
        return self.text_of.tokens if self.text_of else self.root / TOKENS

    def within(self, name: str) -> "Workspace":
        """Workspace below this one, with results and pointers of its own and the same tokenized text."""
        return Workspace(self.root / name, text_of=self)

    def stage_dir(self, stage: str) -> Path:
        """Directory of a stage's artifacts."""
        return self.root / stage

    def artifacts(self, stage: str) -> list[Artifact]:
        """All readable artifacts of a stage, sorted by directory name."""
        if not self.stage_dir(stage).is_dir():
            return []
        paths = sorted(p for p in self.stage_dir(stage).iterdir() if p.is_dir() and not p.name.startswith("."))
        return [artifact for path in paths if (artifact := _readable(path))]

    def current(self, stage: str) -> Artifact | None:
        """Artifact that the stage made last; None if there is none. ArtifactError if it is damaged."""
        path = self.current_path(stage)
        return Artifact.open(path) if path else None

    def current_path(self, stage: str) -> Path | None:
        """Directory of the artifact that the stage made last; None if there is none."""
        pointer = self.stage_dir(stage) / CURRENT
        if not pointer.is_file():
            return None
        name = pointer.read_text(errors="replace").strip()
        path = self.stage_dir(stage) / name
        return path if name == path.name and os.path.isdir(path) else None

    def require(self, stage: str, command: str) -> Artifact:
        """Current artifact of a stage. ArtifactError with the command to run if there is none."""
        artifact = self.current(stage)
        if artifact is None:
            raise self.lacks(f"{stage} result", command)
        return artifact

    def lacks(self, what: str, command: str) -> ArtifactError:
        """Error to raise where something is missing that a command makes."""
        return ArtifactError(f"workspace {self.root} has no {what}: run `{self.command(command)}` first")

    def command(self, command: str) -> str:
        """A command with the options that make it work in this workspace, wherever the current one is."""
        words = [command, "--run", shlex.quote(self.name)]
        if self.root.parent != Path("runs"):
            words += ["--runs-dir", shlex.quote(str(self.root.parent))]
        return " ".join(words)

    def point(self, artifact: Artifact) -> None:
        """Make an artifact the current one of its stage."""
        pointer = self.stage_dir(artifact.stage) / CURRENT
        content = f"{artifact.path.name}\n".encode()
        if not pointer.is_file() or pointer.read_bytes() != content:
            io.replace(pointer, content)

    @property
    def settings(self) -> dict[str, Any]:
        """Defaults of later commands: the parent model and the data. Not part of any result's identity."""
        path = self.root / SETTINGS
        return strict_json.load(path) if path.is_file() else {}

    def save_settings(self, **changes: Any) -> None:
        """Change some of the settings."""
        io.make_dirs(self.root)
        merged = self.settings | changes
        if merged != self.settings:
            io.replace(self.root / SETTINGS, canonical_json.pretty(merged))

    @property
    def given(self) -> dict[str, Any]:
        """What the user gave: fingerprint of a model -> its name, and of text -> its settings. For reports only."""
        path = self.root / GIVEN
        return strict_json.load(path) if path.is_file() else {}

    def save_given(self, given: Mapping[str, Any]) -> None:
        """Add to what the user gave."""
        known = self.given
        if (merged := {**known, **given}) != known:
            io.replace(self.root / GIVEN, canonical_json.pretty(merged))

    @contextmanager
    def overwriting(self, command: str | None, *, is_dry: bool = False) -> Iterator[int | None]:
        """Context of a command that makes existing results again, or None of any other.

        Yields since when results are its own, in nanoseconds since the epoch: from the start of the command before, if
        that was the same and did not end. Another command forgets it.
        """
        path = self.root / OVERWRITING
        known: dict[str, Any] = {}
        with suppress(CheckpointError):  # damaged: everything is made again
            known = strict_json.load(path) if path.is_file() else {}
        is_same = command is not None and known.get("command") == command
        since = int(known["since"]) if is_same else time.time_ns()
        if not is_dry and command:
            io.replace(path, canonical_json.pretty({"command": command, "since": since}))
        elif not is_dry and known:
            io.disk.remove_file(path)
        yield since if command else None
        if not is_dry and command:
            io.disk.remove_file(path)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep a second process from doing the same work. Results are correct without the lock."""
        lock = FileLock(self.root / LOCK)
        _acquire(lock, self.root)
        try:
            yield
        finally:
            _remove_if_empty(self.root)  # under the lock, so that no other process is writing
            lock.release()


def _readable(path: Path) -> Artifact | None:
    try:
        return Artifact.open(path)
    except ArtifactError as e:
        progress.warn_once(f"skipped: {e}")
        return None


def _remove_if_empty(root: Path) -> None:
    """Remove the directory of a command that failed before it wrote a file."""
    if root.is_dir() and {path.name for path in root.rglob("*") if not path.is_dir()} <= {LOCK, OVERWRITING}:
        io.remove_tree(root)
        with suppress(OSError):  # other workspaces, or another process that makes one, need it
            io.disk.remove_dir(root.parent)


def _acquire(lock: FileLock, root: Path) -> None:
    """Make the directory and acquire the lock in it; both are made again if the holder before removes them."""
    waiting, removed = False, 0
    while True:
        try:
            io.make_dirs(root)
            lock.acquire(timeout=1 if waiting else 2)
            if _is_in_place(lock):
                return
            lock.release()
        except FileNotFoundError:
            removed += 1
            if removed == REMOVALS:
                raise
        except Timeout:
            if not waiting:
                progress.say(f"waiting for another minitron process in {root}")
            waiting = True
            progress.raise_if_stopped()
        except OSError as e:
            if e.errno not in (errno.ENOTSUP, errno.ENOLCK):
                raise
            progress.warn(f"{root} is on a file system without locks: do not run two minitron processes in it at once")
            return


def _is_in_place(lock: FileLock) -> bool:
    """Whether the held lock is on the file that another process would open now, and not on a removed one."""
    held = lock._context.lock_file_fd
    try:
        return held is None or os.path.samestat(os.fstat(held), os.stat(lock.lock_file))
    except FileNotFoundError:
        return False


def pretraining_of(fingerprint: str) -> str:
    """Name in `Workspace.given` of the training that the model with this fingerprint had behind it."""
    return f"pretraining of {fingerprint}"


def others_beside(fingerprint: str) -> str:
    """Name in `Workspace.given` of the models, measured elsewhere, that stand beside the one with this fingerprint."""
    return f"beside {fingerprint}"


def open_workspace(runs: Path, name: str | None, *, default: str | None = None) -> Workspace:
    """Workspace called `name`, else `default`, else the one used last. ArtifactError if none is known."""
    name = name or default or last_used(runs)
    if name is None:
        raise ArtifactError(
            f"{runs} has no current workspace: name one with --run, or start with `minitron importance MODEL`"
        )
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise InputError(
            f"workspace name {name!r} is not valid: use letters, digits, '.', '_' and '-', "
            "and begin with a letter or digit"
        )
    if name.lower() == CURRENT:  # some file systems ignore case
        raise InputError(
            f"workspace name {name!r} is reserved for the file that names the last workspace: choose another"
        )
    return Workspace(runs / name)


def last_used(runs: Path) -> str | None:
    """Name of the workspace that was used last; None before the first."""
    pointer = runs / CURRENT
    return pointer.read_text().strip() if pointer.is_file() else None


def remember(workspace: Workspace) -> None:
    """Make a workspace the default of commands without --run."""
    pointer = workspace.root.parent / CURRENT
    if last_used(workspace.root.parent) != workspace.name:
        io.replace(pointer, f"{workspace.name}\n".encode())


def slug(text: str) -> str:
    """Workspace name for a model: the last component of its path, in permitted characters."""
    tail = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(text).name or "model").lstrip("-._").rstrip("-.")
    return "model" if tail.lower() in ("", CURRENT) else tail.lower()
