"""Ctrl-C and SIGTERM: the first requests a stop, the second ends the program at once."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from minitron_cli import process_rank, stopping

NUMBERS = (signal.SIGINT, signal.SIGTERM)
REMARK = b"\nstopping after the current step; press Ctrl-C again to stop at once\n"


@contextmanager
def handled() -> Iterator[None]:
    """Context in which these signals stop the work instead of the program. Earlier handlers are restored after it."""
    stopping.request_stop(None)
    before = {number: signal.signal(number, _on_signal) for number in NUMBERS}
    received, written = os.pipe()
    os.set_blocking(written, False)
    before_fd = signal.set_wakeup_fd(written, warn_on_full_buffer=False)
    threading.Thread(target=_end_at_second, args=(received,), daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before_fd)
        os.close(written)  # ends the thread
        stopping.request_stop(None)
        for number, handler in before.items():
            signal.signal(number, handler)


def _on_signal(number: int, frame: FrameType | None) -> None:
    """Request a stop; the next SIGTERM has its default action again."""
    if stopping.stop_requested():
        os._exit(128 + number)
    stopping.request_stop(number)
    if number == signal.SIGTERM:
        signal.signal(number, signal.SIG_DFL)
    if process_rank.is_first_process():
        os.write(2, REMARK)  # print is not signal-safe
    stopping.raise_if_interruptible()


def _end_at_second(received: int) -> None:
    """Exit at the second signal, in a thread: a Python handler would wait for the end of a long call into torch."""
    count = 0
    with os.fdopen(received, "rb", buffering=0) as numbers:
        while number := numbers.read(1):
            count += number[0] in NUMBERS
            if count == 2:
                os._exit(128 + number[0])
