"""What can go wrong, as a user sees it. Each message is one sentence that ends in what to do next.

MinitronError              exit 1
├── InputError             exit 2   what was asked for or handed in is wrong
│   ├── RecipeError                 a recipe, an override, an option
│   ├── CheckpointError             a model directory
│   ├── DataError                   a text or token source
│   ├── ArtifactError               a stage's input is missing, damaged or of another model
│   └── InfeasibleError             no shape meets the target
├── EnvironmentFault       exit 3   disk, permission, memory, lock, network
├── RunFailed              exit 1   the work itself failed (diverged)
├── GateMissed             exit 4   a measured value misses its gate
└── Interrupted            exit 130 or 143, the state is saved
"""


class MinitronError(Exception):
    """Anything this package raises on purpose."""

    exit_code = 1


class InputError(MinitronError, ValueError):
    exit_code = 2


class RecipeError(InputError):
    pass


class CheckpointError(InputError):
    pass


class DataError(InputError):
    pass


class ArtifactError(InputError):
    pass


class InfeasibleError(InputError):
    pass


class EnvironmentFault(MinitronError):
    exit_code = 3


class RunFailed(MinitronError):
    pass


class GateMissed(MinitronError):
    exit_code = 4


class Interrupted(MinitronError):
    """The user or the scheduler asked to stop; raised between two steps of a loop."""

    def __init__(self, message: str, signal_number: int = 2) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


def shown(value: object, length: int = 100) -> str:
    """A value of somebody else's making, for use in a message: printable, and no longer than one can read."""
    text = repr(value)
    return text if len(text) <= length else text[: length - 1] + "…"
