"""Terminal back end: people read tables and progress on stderr, programs read JSON on stdout."""

import json
import time
from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table as RichTable

from minitron_cli import process_rank
from minitron_cli.cli.options import Show
from minitron_cli.figures import Figure
from minitron_cli.progress import Step
from minitron_cli.report.view import Table

LINE_SECONDS = 10  # seconds between two progress lines of a loop where there is no terminal to redraw
WORTH_A_LINE_SECONDS = 2  # loops shorter than this leave no line behind


def result(text: str) -> None:
    """Print the requested text on stdout, in the first process only."""
    if process_rank.is_first_process():
        print(text)


def data(value: Any) -> None:
    """Print JSON on stdout."""
    result(json.dumps(value, indent=2, allow_nan=False, default=str))


def note(text: str) -> None:
    """Print a line on stderr."""
    _stderr().print(escape(text))


def plain(text: str) -> None:
    """Print text on stderr as it is."""
    _stderr().print(text, markup=False)


def error(sentence: str) -> None:
    """Print an error as one red line."""
    _stderr().print(f"error: {sentence}", style="red", markup=False)


def table(shown: Table) -> None:
    """Print a table on stderr, numbers aligned to the right."""
    drawn = RichTable(box=None, pad_edge=False, show_header=any(shown.header))
    for i, heading in enumerate(shown.header):
        drawn.add_column(
            escape(heading), justify="left" if shown.is_words(i) else "right", header_style="dim", overflow="fold"
        )
    for row in shown.text():
        drawn.add_row(*map(escape, row))
    console = _stderr()
    with console.capture() as captured:
        console.print(drawn)
    lines = [line.rstrip() for line in captured.get().splitlines()]
    if shown.title:
        console.print(shown.title, style="bold", markup=False)
    console.out(*lines, sep="\n", end="\n\n", highlight=False)


def tables(shown: Iterable[Table]) -> None:
    """Print tables on stderr."""
    for one in shown:
        table(one)


def fields(title: str, facts: Mapping[str, Any], shown: Show) -> None:
    """Print named facts, as JSON or as a table of two columns."""
    if shown.json:
        data(facts)
        return
    rows = tuple((name.replace("_", " "), _spelled(value)) for name, value in facts.items() if value is not None)
    table(Table(title, (Figure(""), Figure("")), rows))


def _spelled(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_spelled(inner)}" for name, inner in value.items())
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)


class _Stderr(Console):
    """Console on stderr that leaves a broken pipe to the caller."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError  # rich would exit with code 1


def _stderr() -> Console:
    console = _Stderr(stderr=True, highlight=False, quiet=not process_rank.is_first_process())
    if not console.is_terminal:
        console.width = 10_000  # outside a terminal, never wrap: logs are searched by line
    return console


# Progress ------------------------------------------------------------------------------------------------------------


class Terminal:
    """`progress.Display` with bars on a terminal, and a line every few seconds elsewhere."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._console = _stderr()
        self._bars: Progress | None = None
        self._open = 0

    def start(self, title: str, total: int | None, unit: str) -> Step:
        if self._quiet:
            return lambda n=1, **figures: None
        self._open += 1
        if not self._console.is_terminal:
            return _Lines(self._console, title, total, unit)
        if self._bars is None:
            self._bars = _bars(self._console)
            self._bars.start()
        return _Bar(self._bars, title, total, unit)

    def finish(self, step: Step) -> None:
        if isinstance(step, _Loop):
            self._open -= 1
            step.close(is_outermost=not self._open)
        if self._bars and not self._open:
            self._bars.stop()
            self._bars = None

    def say(self, text: str) -> None:
        if not self._quiet:
            self._console.print(text, markup=False)

    def warn(self, text: str) -> None:
        self._console.print(f"warning: {text}", style="yellow", markup=False)


class _Loop:
    """State of one running loop."""

    def __init__(self, console: Console, title: str, total: int | None, unit: str) -> None:
        self.console, self.title, self.total, self.unit = console, title, total, unit
        self.done, self.figures, self.started = 0, "", time.monotonic()
        self.first: tuple[int, float] | None = None  # a resumed loop starts above 0

    def __call__(self, n: int = 1, **figures: float | int | str) -> None:
        self.done += n
        self.first = self.first or (self.done, time.monotonic())
        self.figures = "  ".join(f"{name} {_figure(value)}" for name, value in figures.items()) or self.figures
        self.show()

    def show(self) -> None:
        """Update what is shown."""

    def close(self, *, is_outermost: bool) -> None:
        seconds = time.monotonic() - self.started
        if is_outermost and seconds >= WORTH_A_LINE_SECONDS:
            self.console.print(f"{self.line()}  in {_duration(seconds)}", markup=False)

    def line(self) -> str:
        return f"{self.title}  {_amount(self.done, self.total, self.unit)}  {self.figures}".rstrip()


class _Lines(_Loop):
    def __init__(self, console: Console, title: str, total: int | None, unit: str) -> None:
        super().__init__(console, title, total, unit)
        self.last = self.started

    def show(self) -> None:
        now = time.monotonic()
        if now - self.last < LINE_SECONDS:
            return
        self.last = now
        left = self._left(now)
        self.console.print(self.line() + (f"  {_duration(left)} left" if left else ""), markup=False)

    def _left(self, now: float) -> float | None:
        """Seconds left at the speed since the first call; None if unknown."""
        if not self.total or self.first is None or self.done == self.first[0]:
            return None
        done, started = self.first
        return (now - started) * (self.total - self.done) / (self.done - done)


class _Bar(_Loop):
    def __init__(self, bars: Progress, title: str, total: int | None, unit: str) -> None:
        super().__init__(bars.console, title, total, unit)
        self.bars = bars
        self.task = bars.add_task(escape(title), total=total, amount="", figures="")

    def show(self) -> None:
        amount = _amount(self.done, self.total, self.unit)
        self.bars.update(self.task, completed=self.done, amount=amount, figures=escape(self.figures))

    def close(self, *, is_outermost: bool) -> None:
        self.bars.remove_task(self.task)
        super().close(is_outermost=is_outermost)


def _bars(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[amount]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"),
        console=console,
        transient=True,
        refresh_per_second=4,
    )


def _amount(done: int, total: int | None, unit: str) -> str:
    if unit == "bytes":
        return f"{done / 1e6:,.0f}" + (f"/{total / 1e6:,.0f}" if total else "") + " MB"
    return f"{done:,}" + (f"/{total:,}" if total else "") + f" {unit}"


def _figure(value: float | int | str) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
