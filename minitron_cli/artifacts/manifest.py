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
from minitron_cli.results.base import RESULT
from minitron_cli.spec import Spec

SCHEMA_VERSION = 2
MANIFEST = "manifest.json"
RUN = "run.json"
CHAT_TEMPLATES = "additional_chat_templates"
"""Directory of a model's named chat templates, beside its default one (transformers 4.52 and later)."""
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
        if odd := [name for name in files if not _is_plain(name)]:
            raise ValueError(f"{odd[0]!r} is not a plain file name")
        return files

    @property
    def fingerprint(self) -> str:
        """Content hash of all files."""
        return canonical_json.digest({name: list(record) for name, record in self.files.items()})


def _is_plain(name: str) -> bool:
    """Whether a file of this name is in the artifact's directory or in that of its chat templates."""
    own = name.removeprefix(f"{CHAT_TEMPLATES}/")
    return Path(own).name == own and own != ".." and own.isprintable()


_COMMANDS = {
    "evaluate": "minitron eval",
    "teacher": "python scripts/bench_teacher.py",
    "family": "minitron run",
    "ticket_start": "minitron ticket train",
    "ticket_round": "minitron ticket train",
    "ticket": "minitron ticket train",
    "transfer": "minitron ticket train",
    "supermask": "minitron ticket supermask",
}
"""Stage -> command that makes its result, where that has not the stage's name."""


def command_of(stage: str) -> str:
    """Command that makes a stage's result."""
    return _COMMANDS.get(stage, f"minitron {stage}")


def again(stage: str) -> str:
    """End of a sentence on a damaged artifact: how to make it again."""
    return f"run `{command_of(stage)}` with the same settings to make it again (`minitron verify` lists them)"


def key_of(stage: str, version: int, config: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """Hash that is equal for equal config and inputs."""
    return canonical_json.digest({"stage": stage, "stage_version": version, "config": config, "inputs": inputs})


def write(directory: Path, manifest: Manifest) -> None:
    """Write a manifest with its own hash, which no other file records."""
    io.write_new_json(directory / MANIFEST, sealed(manifest.model_dump(mode="json")))


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object with its own hash."""
    return {**content, SEAL: canonical_json.digest(content)}


def unsealed(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file that ends with its own hash, without it; None if the file is damaged."""
    try:
        content = strict_json.load(path)
    except CheckpointError:
        return None
    return content if content.pop(SEAL, None) == canonical_json.digest(content) else None


class UnreadableManifest(ArtifactError):
    """A manifest is missing, damaged or of another version."""

    def __init__(self, directory: Path, problem: str, advice: str | None = None) -> None:
        advice = advice or again(directory.parent.name)
        super().__init__(f"{directory / MANIFEST} {problem}: {advice}")
        self.problem = f"{MANIFEST} {problem}"


def read(directory: Path) -> Manifest:
    """Manifest of an artifact directory. UnreadableManifest if there is none that this version can read."""
    path = directory / MANIFEST
    if not path.exists():
        is_artifact = (directory / RESULT).exists()
        advice = again(directory.parent.name) if is_artifact else "give a directory that a stage wrote"
        raise UnreadableManifest(directory, "does not exist", advice)
    try:
        content = strict_json.load(path)
    except CheckpointError:
        raise UnreadableManifest(directory, "is damaged") from None
    _check_version(directory, content.get("schema_version"))
    if content.pop(SEAL, None) != canonical_json.digest(content):
        raise UnreadableManifest(directory, "has changed since it was written")
    try:
        return Manifest.model_validate(content)
    except ValidationError as e:
        where = ".".join(map(str, e.errors()[0]["loc"]))
        raise UnreadableManifest(directory, f"is damaged at {where}") from None


def _check_version(directory: Path, version: object) -> None:
    if not isinstance(version, int):
        return  # the hash of the content decides
    if version > SCHEMA_VERSION:
        raise UnreadableManifest(
            directory, f"has schema {version}, written by a newer minitron", "upgrade minitron to read it"
        )
    if version < SCHEMA_VERSION:
        made_by = f"has schema {version}, written by an older version of minitron"
        raise UnreadableManifest(directory, made_by, f"run `{command_of(directory.parent.name)}` to make it again")


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
