"""Stop requests. A signal handler makes one; long work raises Interrupted at its next check.

Loops check with `raise_if_stopped`, most of them through their progress bar. While a stop is requested, every call of a
torch module checks too, so that a forward pass, whoever runs it, ends at its next layer, and so does every import,
because those of large libraries take seconds. Before, this costs nothing.
"""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from minitron_cli.errors import Interrupted
from minitron_cli.process_rank import process_count

_signal: int | None = None
_deferrals = 0
_interruptible = 0
_check: Any = None
"""Handle of the hook that checks in forward passes, while a stop is requested."""


class _CheckingFinder:
    """Entry of `sys.meta_path` that finds nothing."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> None:
        """Raise Interrupted unless the stop is deferred."""
        raise_if_stopped()


def request_stop(signal_number: int | None) -> None:
    """Make every loop stop at its next check; None withdraws the request."""
    global _signal, _check
    _signal = signal_number
    register = getattr(sys.modules.get("torch.nn.modules.module"), "register_module_forward_pre_hook", None)
    sys.meta_path[:] = [finder for finder in sys.meta_path if finder is not _CheckingFinder]
    if signal_number is not None:
        sys.meta_path.insert(0, _CheckingFinder)
    if signal_number is None and _check is not None:
        _check.remove()
        _check = None
    elif signal_number is not None and _check is None and register is not None:  # there is no torch yet otherwise
        _check = register(lambda *_: raise_if_stopped())


def stop_requested() -> bool:
    """Whether a stop was requested."""
    return _signal is not None


def raise_if_stopped() -> None:
    """Raise Interrupted if a stop was requested and is not deferred."""
    if _signal is not None and not _deferrals:
        raise interrupted()


def interrupted() -> Interrupted:
    """Error to raise when work has stopped on request, or in one of several processes because another has ended."""
    why = "stopped on request" + ", or because another process has ended" * (process_count() > 1)
    return Interrupted(f"{why}; run the same command again to continue", _signal or 2)


@contextmanager
def deferred() -> Iterator[None]:
    """Context in which no check raises: state is being saved, or all processes have to stop at the same place."""
    global _deferrals
    _deferrals += 1
    try:
        yield
    finally:
        _deferrals -= 1


@contextmanager
def interruptible() -> Iterator[None]:
    """Context that a stop request ends at once, between any two Python instructions.

    For calls into libraries without checks, such as loading a model, whose work is repeated by the next run anyway.
    """
    global _interruptible
    count = threading.current_thread() is threading.main_thread()  # where signal handlers run
    raise_if_stopped()
    _interruptible += count
    try:
        yield
    finally:
        _interruptible -= count
    raise_if_stopped()


def raise_if_interruptible() -> None:
    """Raise Interrupted, for a signal handler, if it has interrupted an `interruptible` context."""
    if _interruptible:
        raise_if_stopped()
