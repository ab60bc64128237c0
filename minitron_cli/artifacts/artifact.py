"""Immutable result directories with a manifest. A stage fills a hidden sibling; renaming it is the commit."""

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from pydantic import ValidationError

from minitron_cli import io, strict_json
from minitron_cli.artifacts import manifest as manifests
from minitron_cli.artifacts.manifest import MANIFEST, RUN, Manifest
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
        """Artifact at `path`. ArtifactError unless its files have the recorded sizes and, with `verify`, hashes."""
        artifact = cls(Path(path), manifests.read(Path(path)))
        if damage := artifact.damage(hashes=verify):
            raise ArtifactError(f"{path}: {damage}; remove the directory and run {artifact.stage} again")
        return artifact

    def damage(self, *, hashes: bool) -> str | None:
        """Description of the first damaged file; None if all are as recorded."""
        for name, record in self.manifest.files.items():
            try:
                status = os.lstat(self.path / name)
            except FileNotFoundError:
                return f"{name} is missing"
            if not stat.S_ISREG(status.st_mode) or status.st_size != record.size_bytes:
                return f"{name} is not the file that was written"
            if hashes and io.file_record(self.path / name) != record:
                return f"{name} has changed since it was written"
        unknown = set(os.listdir(self.path)) - self.manifest.files.keys() - {MANIFEST, RUN}
        return f"{min(unknown)} does not belong there" if unknown else None

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

    @property
    def run(self) -> RunRecord | None:
        """Clock, host and speed of the run that made it, outside of its identity; None if the record is gone."""
        try:
            return RunRecord.model_validate(strict_json.load(self.path / RUN))
        except (OSError, CheckpointError, ValidationError):
            return None

    def file(self, name: str) -> Path:
        """Path of one of the artifact's files. ArtifactError if the manifest does not list it."""
        if name not in self.manifest.files:
            raise ArtifactError(f"{self.path} has no {name}: run {self.stage} again with this version of minitron")
        return self.path / name

    def read_json(self, name: str) -> dict[str, Any]:
        """JSON object in one of the artifact's files."""
        return strict_json.load(self.file(name))


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
    paths = sorted(temporary.iterdir())
    unknown = [path for path in paths if path not in hashed]
    records = {**hashed, **dict(zip(unknown, io.file_records(unknown), strict=True))}
    files = {path.name: records[path] for path in paths}
    manifest = unhashed.model_copy(update={"files": files})
    io.write_new_json(temporary / RUN, run.model_dump(mode="json", exclude_defaults=True))
    manifests.write(temporary, manifest)
    if not io.publish(temporary, final):
        io.remove_tree(temporary)
    return Artifact.open(final)
