"""Exit code and one-sentence message of an exception. Prints nothing."""

from typing import NamedTuple

from minitron_cli import environment_errors
from minitron_cli.errors import DryRunStop, Interrupted, MinitronError

KEPT = "please report it with "
"""Beginning of a note at an exception that names the file with its traceback."""


class Fault(NamedTuple):
    exit_code: int
    sentence: str
    is_expected: bool = True
    """False for a bug, whose traceback is kept for a report."""


def explain(error: BaseException) -> Fault:
    """Exit code and sentence for the user."""
    if isinstance(error, MinitronError | Interrupted):
        return Fault(error.exit_code, _one_line(str(error)))
    if isinstance(error, DryRunStop):
        return Fault(0, str(error))
    if isinstance(error, KeyboardInterrupt):
        return Fault(130, "stopped")
    if sentence := environment_errors.fault(error):
        return Fault(3, sentence)
    return Fault(1, f"unexpected {type(error).__name__}: {_one_line(str(error))[:200]}", is_expected=False)


def kept_traceback(error: BaseException) -> str | None:
    """Note that names the log file with the traceback, if one was written."""
    return next((note for note in getattr(error, "__notes__", ()) if note.startswith(KEPT)), None)


def _one_line(text: str) -> str:
    return " ".join(text.split())
