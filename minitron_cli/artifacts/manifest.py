"""What an artifact is: made by which stage, from what, holding which bytes.

Everything here is identity: no clock, no host, no path. Those go to `run.json` beside it.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError, field_validator

from minitron_cli import canonical_json, io, strict_json
from minitron_cli.errors import ArtifactError, CheckpointError
from minitron_cli.spec import Spec

SCHEMA_VERSION = 2
MANIFEST = "manifest.json"
RUN = "run.json"
SEAL = "sha256"


class Manifest(Spec):
    schema_version: int
    stage: str
    stage_version: int
    label: str
    key: str
    """sha256 over stage, stage version, config and input fingerprints."""
    config: dict[str, Any]
    inputs: dict[str, str]
    """Name -> content hash, or a hub commit."""
    files: dict[str, io.FileRecord]

    @field_validator("files")
    @classmethod
    def _plain_names(cls, files: dict[str, io.FileRecord]) -> dict[str, io.FileRecord]:
        if odd := [name for name in files if Path(name).name != name or not name.isprintable()]:
            raise ValueError(f"{odd[0]!r} is not a plain file name")
        return files

    @property
    def fingerprint(self) -> str:
        """Content hash of all files."""
        return canonical_json.digest({name: list(record) for name, record in self.files.items()})


def command_of(stage: str) -> str:
    """Command that makes a stage's result."""
    return {"evaluate": "minitron eval", "teacher": "minitron demo"}.get(stage, f"minitron {stage}")


def again(stage: str) -> str:
    """End of a sentence on a damaged artifact: how to make it again."""
    return f"run `{command_of(stage)}` with the same settings to make it again (`minitron verify` lists them)"


def key_of(stage: str, version: int, config: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """Hash that is equal for equal config and inputs."""
    return canonical_json.digest({"stage": stage, "stage_version": version, "config": config, "inputs": inputs})


def write(directory: Path, manifest: Manifest) -> None:
    """Write a manifest with its own hash, which no other file records."""
    content = manifest.model_dump(mode="json")
    io.write_new_json(directory / MANIFEST, content | {SEAL: canonical_json.digest(content)})


def read(directory: Path) -> Manifest:
    """Manifest of an artifact directory. ArtifactError if there is none that this version can read."""
    path = directory / MANIFEST
    if not path.exists():
        raise ArtifactError(
            f"{directory} is not a minitron artifact: it has no {MANIFEST}; give one that a stage wrote"
        )
    hint = again(directory.parent.name)
    try:
        content = strict_json.load(path)
    except CheckpointError:
        raise ArtifactError(f"{path} is damaged; {hint}") from None
    version = content.get("schema_version")
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise ArtifactError(f"{path} has schema {version}, written by a newer minitron: upgrade minitron to read it")
    if isinstance(version, int) and version < SCHEMA_VERSION:
        raise ArtifactError(
            f"{directory} was made by an older version of minitron: run `{command_of(directory.parent.name)}` to make "
            "it again"
        )
    if content.pop(SEAL, None) != canonical_json.digest(content):
        raise ArtifactError(f"{path} has changed since it was written; {hint}")
    try:
        return Manifest.model_validate(content)
    except ValidationError as e:
        where = ".".join(map(str, e.errors()[0]["loc"]))
        raise ArtifactError(f"{path} is damaged at {where}; {hint}") from None


def of_model(directory: Path) -> Manifest | None:
    """Manifest of a model that a stage of this version made. None for any other: its files are all there is to know.

    ArtifactError if it is damaged.
    """
    path = directory / MANIFEST
    if not path.is_file():
        return None
    try:
        content = strict_json.load(path)
    except CheckpointError:
        content = {}
    is_ours = re.fullmatch(r"(.+-)?[0-9a-f]{8}", directory.name) or {"stage", "stage_version"} & content.keys()
    version = content.get("schema_version")
    is_older = isinstance(version, int) and version < SCHEMA_VERSION
    return read(directory) if is_ours and not is_older else None
