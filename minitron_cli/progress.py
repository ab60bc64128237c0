"""Progress of long loops: shown while they run, and stopped between two of their steps.

Knows nothing of terminals: the command line installs a `Display`; without one, nothing is shown.
After a stop was requested, see `stopping`, the next step of any loop raises `Interrupted`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from minitron_cli.stopping import raise_if_stopped as raise_if_stopped
from minitron_cli.stopping import request_stop as request_stop
from minitron_cli.stopping import stop_requested as stop_requested

if TYPE_CHECKING:
    from minitron_cli.results.price import Price

Step = Callable[..., None]  # step(n=1, **figures): n more units are done; figures are shown beside the bar


class Display(Protocol):
    """Shows progress, remarks and warnings."""

    def begin(self, text: str) -> None: ...

    def end(self) -> None: ...

    def start(self, title: str, total: int | None, unit: str) -> Step: ...

    def finish(self, step: Step) -> None: ...

    def say(self, text: str) -> None: ...

    def warn(self, text: str) -> None: ...

    def priced(self, price: "Price") -> None: ...


class _Silent:
    def begin(self, text: str) -> None:
        pass

    def end(self) -> None:
        pass

    def start(self, title: str, total: int | None, unit: str) -> Step:
        return lambda n=1, **figures: None

    def finish(self, step: Step) -> None:
        pass

    def say(self, text: str) -> None:
        pass

    def warn(self, text: str) -> None:
        pass

    def priced(self, price: "Price") -> None:
        pass


_display: Display = _Silent()
_warned: set[str] = set()


def show_on(display: Display | None) -> None:
    """Show progress and remarks on `display`; None shows nothing."""
    global _display
    _display = display or _Silent()
    _warned.clear()


@contextmanager
def track(title: str, total: int | None = None, unit: str = "steps") -> Iterator[Step]:
    """Progress bar of one loop. Call the yielded `step(n, **figures)` after each unit of work.

    Interrupted at the start and at each step, if a stop was requested.
    """
    raise_if_stopped()
    show = _display.start(title, total, unit)

    def step(n: int = 1, **figures: float | int | str) -> None:
        show(n, **figures)
        raise_if_stopped()

    try:
        yield step
    finally:
        _display.finish(show)


@contextmanager
def announced(text: str) -> Iterator[None]:
    """Context that says at once what is about to be done: libraries load for seconds before anything else is shown."""
    _display.begin(text)
    try:
        yield
    finally:
        _display.end()


def say(text: str) -> None:
    """Show a remark of one line."""
    _display.say(text)


def priced(price: "Price") -> None:
    """Show what work is about to take, part by part, where details are shown."""
    _display.priced(price)


def warn(text: str) -> None:
    """Warn that something the user asked for has no effect, or not the expected one."""
    _display.warn(text)


def warn_once(text: str) -> None:
    """Show a warning once per display, if it would be repeated."""
    if text not in _warned:
        _warned.add(text)
        warn(text)
