"""Immutable result directories with a manifest. A stage fills a hidden sibling; renaming it is the commit."""

import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from pydantic import ValidationError

from minitron_cli import canonical_json, io, progress, strict_json
from minitron_cli.artifacts import file_hashes
from minitron_cli.artifacts import manifest as manifests
from minitron_cli.artifacts.file_hashes import Hash
from minitron_cli.artifacts.manifest import MANIFEST, RUN, SEAL, Manifest, again
from minitron_cli.errors import ArtifactError, CheckpointError
from minitron_cli.io import FileRecord
from minitron_cli.results.base import RESULT, Result
from minitron_cli.results.run_record import RunRecord

R = TypeVar("R", bound=Result)


@dataclass(frozen=True)
class Artifact:
    """Result directory of a stage."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: Path, *, verify: bool = False) -> "Artifact":
        """Artifact at `path`. ArtifactError for the first file that is not as it was written.

        A large file whose times have not changed since it was last hashed is not hashed again, except with `verify`.
        """
        artifact = cls(Path(path), manifests.read(Path(path)))
        if damage := next(artifact.damage(file_hashes.fresh if verify else file_hashes.records), None):
            raise artifact._damaged(damage)
        return artifact

    def damage(self, hashed: Hash) -> Iterator[str]:
        """Descriptions of files that are missing, changed or strange, by the hashes that `hashed` returns."""
        yield from self.changes(hashed)
        for name in sorted(io.files_in(self.path).keys() - self.manifest.files.keys() - {MANIFEST, RUN}):
            yield f"{name} does not belong there"

    def changes(self, hashed: Hash, names: Iterable[str] | None = None) -> Iterator[str]:
        """Descriptions of files, of these names or of any, that are missing or changed."""
        records = self.manifest.files if names is None else {name: self.manifest.files[name] for name in names}
        wrong = {name: _wrong_file(self.path / name, record) for name, record in records.items()}
        yield from (f"{name} {problem}" for name, problem in wrong.items() if problem)
        intact = [name for name, problem in wrong.items() if not problem]
        for name, record in zip(intact, hashed([self.path / name for name in intact]), strict=True):
            if record != records[name]:
                yield f"{name} has changed since it was written"

    @property
    def stage(self) -> str:
        return self.manifest.stage

    @property
    def label(self) -> str:
        return self.manifest.label

    @property
    def key(self) -> str:
        return self.manifest.key

    @property
    def fingerprint(self) -> str:
        return self.manifest.fingerprint

    def result(self, kind: type[R]) -> R:
        """Result that the stage stored. ArtifactError if it is of another kind, schema or version, or is damaged."""
        self.file(RESULT)
        return kind.read(self.path)

    def mark_used(self) -> None:
        """Note that a run made it or found it up to date: the time of its directory. Nothing if that is read-only."""
        with suppress(OSError):
            os.utime(self.path)

    @property
    def used(self) -> int:
        """When `mark_used` was called last, in nanoseconds; it tells artifacts of the same content and other labels."""
        return self.path.stat().st_mtime_ns

    @property
    def run(self) -> RunRecord | None:
        """Clock, host and speed of the run that made it, outside of its identity; None, with a warning, without one."""
        try:
            return self.read_run()
        except ArtifactError as e:
            progress.warn_once(str(e))
            return None

    def read_run(self) -> RunRecord:
        """The same record. ArtifactError if it is missing, damaged or of another version."""
        path = self.path / RUN
        try:
            content = strict_json.load(path)
            seal = content.pop(SEAL, None)  # which earlier versions did not write
            if seal in (None, canonical_json.digest(content)):
                return RunRecord.model_validate(content)
        except (OSError, CheckpointError, ValidationError):
            pass
        raise ArtifactError(f"{path} is missing or damaged, so its time and speed are unknown; {again(self.stage)}")

    def file(self, name: str) -> Path:
        """Path of one of the artifact's files. ArtifactError if it was not written, or has changed since it was."""
        if name not in self.manifest.files:
            raise ArtifactError(f"{self.path} has no {name}: run {self.stage} again with this version of minitron")
        if damage := next(self.changes(file_hashes.records, [name]), None):
            raise self._damaged(damage)
        return self.path / name

    def _damaged(self, damage: str) -> ArtifactError:
        return ArtifactError(f"{self.path}: {damage}; {again(self.stage)}")

    def read_json(self, name: str) -> dict[str, Any]:
        """JSON object in one of the artifact's files."""
        return strict_json.load(self.file(name))


def check_model(directory: Path, hashed: Hash = file_hashes.records) -> None:
    """ArtifactError if a model directory is an artifact, or a copy of one, with a file missing or changed.

    Files may have been added, such as a README.
    """
    manifest = manifests.of_model(directory)
    if manifest and (damage := next(Artifact(directory, manifest).changes(hashed), None)):
        raise ArtifactError(
            f"{directory}: {damage}; {again(manifest.stage)}, or remove its {MANIFEST} to use the files as they are"
        )


def _wrong_file(path: Path, record: FileRecord) -> str | None:
    """What is wrong with a file, as far as its status tells."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return "is missing"
    is_right = stat.S_ISREG(status.st_mode) and status.st_size == record.size_bytes
    return None if is_right else "is not the file that was written"


def commit(
    temporary: Path,
    final: Path,
    unhashed: Manifest,
    run: RunRecord,
    hashed: Mapping[Path, FileRecord] = MappingProxyType({}),
) -> Artifact:
    """Hash the remaining files, write the manifest last, and rename the directory to `final`.

    A reader sees the whole artifact or none. If another process committed the same key first, its artifact stays.
    """
    paths = io.files_in(temporary)
    unknown = [path for path in paths.values() if path not in hashed]
    records = {**hashed, **dict(zip(unknown, file_hashes.fresh(unknown), strict=True))}
    files = {name: records[path] for name, path in paths.items()}
    manifest = unhashed.model_copy(update={"files": files})
    io.write_new_json(temporary / RUN, manifests.sealed(run.model_dump(mode="json", exclude_defaults=True)))
    manifests.write(temporary, manifest)
    if io.publish(temporary, final):
        return Artifact(final, manifest)
    io.remove_tree(temporary)
    return Artifact.open(final)
