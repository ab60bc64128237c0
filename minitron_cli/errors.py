"""Errors that users see. Each message is one sentence that ends with what to do next.

MinitronError              exit 1
├── InputError             exit 2   a request or an input is wrong
│   ├── RecipeError                 a recipe, an override, an option
│   ├── CheckpointError             a model directory
│   ├── DataError                   a text or token source
│   ├── ArtifactError               a stage's input is missing, damaged or of another model
│   └── InfeasibleError             no shape meets the target
├── EnvironmentFault       exit 3   disk, permission, memory, lock, network
├── RunFailed              exit 1   the work itself failed (diverged)
└── GateMissed             exit 4   a measured value misses its gate

Interrupted                exit 130 or 143, the state is saved
DryRunStop                 exit 0, no error: what would be done was asked for, and nothing else
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any


class MinitronError(Exception):
    """Base class of all errors that this package raises on purpose."""

    exit_code = 1


class InputError(MinitronError, ValueError):
    """A request or an input is wrong."""

    exit_code = 2


class RecipeError(InputError):
    """A recipe, a key=value change or an option is wrong."""


class CheckpointError(InputError):
    """A model directory is missing, damaged or unsupported."""


class DataError(InputError):
    """A source of text or tokens is missing or broken."""


class ArtifactError(InputError):
    """A stage's input is missing, damaged or of another model."""


class InfeasibleError(InputError):
    """No shape meets the target."""


class EnvironmentFault(MinitronError):
    """Disk, permissions, memory, a lock or the network failed."""

    exit_code = 3


class RunFailed(MinitronError):
    """The work itself failed, for example because training diverged."""


class GateMissed(MinitronError):
    """A measured value misses its gate."""

    exit_code = 4


class Interrupted(BaseException):
    """A stop was requested by the user or the scheduler; raised between two steps of a loop.

    Like KeyboardInterrupt it is no Exception: libraries that run our work must not take it for a failure of theirs.
    """

    def __init__(self, message: str, signal_number: int = 2) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


class DryRunStop(Exception):
    """Raised by a dry run in place of building an artifact; says which one and what is known of it."""

    def __init__(
        self, stage: str, path: Path, changed: list[str], forecast: Mapping[str, Any], price: Any | None = None
    ) -> None:
        super().__init__(f"{stage}: would write {path}" + (f" (changed: {', '.join(changed)})" if changed else ""))
        self.stage, self.path, self.changed, self.forecast, self.price = stage, path, changed, forecast, price


def shown(value: object, length: int = 100) -> str:
    """Representation of an untrusted value for a message: printable and at most `length` characters."""
    text = repr(value)
    return text if len(text) <= length else text[: length - 1] + "…"
