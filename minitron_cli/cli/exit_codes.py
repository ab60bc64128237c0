"""Exit code and one-sentence message of an exception. Prints nothing."""

import errno
from typing import NamedTuple

from minitron_cli.artifacts.build import DryRunStop
from minitron_cli.environment_errors import WITHOUT_ERRNO, is_out_of_memory
from minitron_cli.errors import Interrupted, MinitronError


class Fault(NamedTuple):
    exit_code: int
    sentence: str
    is_expected: bool = True
    """False for a bug, whose traceback is kept for a report."""


ENVIRONMENT = {
    errno.ENOSPC: "no space left on the device; free some space",
    errno.EDQUOT: "the disk quota is used up; free some space",
    errno.EFBIG: "the file is larger than the system allows; raise the limit (ulimit -f)",
    errno.EACCES: "permission denied; choose another path or change its permissions",
    errno.EPERM: "the operation is not permitted; choose another path or change its permissions",
    errno.ENOTDIR: "not a directory; choose another path",
    errno.EROFS: "the file system is read-only; choose another path",
    errno.EIO: "the device failed to read or write; check the disk",
    errno.EMFILE: "too many open files; raise the limit (ulimit -n)",
    errno.ENFILE: "the system has too many open files; close some programs",
    errno.EAGAIN: "too many threads or processes; raise the limit (ulimit -u) or close some programs",
    errno.ELOOP: "a link leads back to itself; remove it",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
    errno.ENOMEM: "out of memory; close other programs",
    errno.ENODEV: "no such device; check the disk",
    errno.ESTALE: "the network file system lost the file; check the mount",
}

NETWORK = ("requests", "urllib3", "httpx", "httpx2", "httpcore", "httpcore2", "aiohttp")  # whose errors have no errno

OUT_OF_MEMORY = "out of memory; lower the batch size (micro_batch_size for distill), or use --dtype bfloat16"


def explain(error: BaseException) -> Fault:
    """Exit code and sentence for the user."""
    if isinstance(error, MinitronError | Interrupted):
        return Fault(error.exit_code, _one_line(str(error)))
    if isinstance(error, DryRunStop):
        return Fault(0, str(error))
    if isinstance(error, KeyboardInterrupt):
        return Fault(130, "stopped")
    for cause in _causes(error):
        if sentence := _environment(cause):
            return Fault(3, sentence)
    return Fault(1, f"unexpected {type(error).__name__}: {_one_line(str(error))[:200]}", is_expected=False)


def _causes(error: BaseException | None) -> list[BaseException]:
    causes: list[BaseException] = []
    while error is not None and error not in causes:
        causes.append(error)
        error = error.__cause__
    return causes


def _environment(error: BaseException) -> str | None:
    if is_out_of_memory(error):
        return OUT_OF_MEMORY
    if isinstance(error, OSError) and error.errno in ENVIRONMENT:
        where = error.filename2 or error.filename
        return f"{f'{where}: ' if where else ''}{ENVIRONMENT[error.errno]}, then run the same command again"
    if isinstance(error, ConnectionError | TimeoutError) or type(error).__module__.split(".")[0] in NETWORK:
        text = _one_line(str(error))[:100]
        return f"the network failed ({text}); check the connection, then run the same command again"
    for text, number in WITHOUT_ERRNO.items():
        if text in str(error).lower():
            return f"{ENVIRONMENT[number]}, then run the same command again"
    return None


def _one_line(text: str) -> str:
    return " ".join(text.split())
