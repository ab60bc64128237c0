"""Base of all stage results: frozen models that are validated when they are read."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import ValidationError

from minitron_cli import io, strict_json
from minitron_cli.errors import ArtifactError, CheckpointError
from minitron_cli.spec import Spec

RESULT = "result.json"
SCHEMA = "schema"

Sizes = Mapping[str, int]
"""Axis -> size."""


class Result(Spec):
    """Result of one stage, stored as `result.json` in its artifact."""

    schema_name: ClassVar[str]
    """Name and version of the fields; the version is raised when a field changes meaning or goes."""
    verb: ClassVar[str]
    """Command that makes the result again."""

    def as_json(self) -> dict[str, Any]:
        """Content of `result.json`: the schema's name and all fields."""
        return {SCHEMA: self.schema_name, **self.model_dump(mode="json")}

    def write(self, directory: Path) -> None:
        """Write the result into a new artifact's directory."""
        text = json.dumps(self.as_json(), indent=2, allow_nan=False) + "\n"  # unsorted: models have an order
        io.write_new(directory / RESULT, text.encode())

    @classmethod
    def read(cls, directory: Path) -> Self:
        """Result stored in an artifact's directory. ArtifactError if it has another schema or does not fit it."""
        path = directory / RESULT
        try:
            return cls.of_json(strict_json.load(path), path)
        except (CheckpointError, OSError):
            raise ArtifactError(
                f"{path} is missing or damaged: run `{cls.verb} --overwrite` to make it again"
            ) from None

    @classmethod
    def of_json(cls, content: Mapping[str, Any], path: Path) -> Self:
        """Result from the content of the file at `path`. ArtifactError as in `read`."""
        fields = {name: value for name, value in content.items() if name != SCHEMA}
        schema = content.get(SCHEMA)
        if schema != cls.schema_name:
            problem = f"has schema {schema!r} and this version of minitron reads {cls.schema_name!r}"
            raise cls._refused(path, problem)
        try:
            return cls.model_validate(fields)
        except ValidationError as e:
            raise cls._refused(path, f"is damaged at {'.'.join(map(str, e.errors()[0]['loc']))}") from None

    @classmethod
    def _refused(cls, path: Path, problem: str) -> ArtifactError:
        return ArtifactError(f"{path} {problem}: run `{cls.verb} --overwrite` to make it again")


class ModelSize(Spec):
    """Size of one model, and the FLOPs of one token's forward pass in a block of the stage's text."""

    sizes: Sizes
    parameters: int
    non_embedding: int
    """Parameters without embeddings and language-model head."""
    decoder_flops: int
    """FLOPs of a token's forward pass without the head, with half a block attended to on average."""
    head_flops: int
    """FLOPs of the language-model head for a token."""

    @property
    def flops(self) -> int:
        """FLOPs of a token's whole forward pass."""
        return self.decoder_flops + self.head_flops
