"""Terminal back end: people read tables and progress on stderr, programs read JSON on stdout."""

import json
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table as RichTable
from rich.text import Text

from minitron_cli import process_rank
from minitron_cli.cli.options import Show
from minitron_cli.progress import Step
from minitron_cli.report.view import Table

if TYPE_CHECKING:
    from minitron_cli.results.price import Price

LINE_SECONDS = 10  # seconds between two progress lines of a loop where there is no terminal to redraw
SPEED_SECONDS = 3600  # speed is that of the last hour, or of the last 1,000 steps
WORTH_A_LINE_SECONDS = 2  # loops shorter than this leave no line behind


def result(text: str) -> None:
    """Print the requested text on stdout, in the first process only."""
    if process_rank.is_first_process():
        print(text)


def data(value: Any) -> None:
    """Print JSON on stdout."""
    result(json.dumps(value, indent=2, allow_nan=False, default=str))


def has_colors() -> bool:
    """Whether stdout is a terminal on which colors are wanted."""
    console = Console()
    return console.is_terminal and not console.no_color


def styled(parts: Iterable[tuple[str, str]]) -> None:
    """Print the requested text on stdout, each (text, style) in its style where there are colors."""
    if has_colors():
        Console(highlight=False).print(Text.assemble(*parts), soft_wrap=True)
    else:
        result("".join(text for text, _ in parts))


def note(text: str) -> None:
    """Print text on stderr as it is."""
    _stderr().print(text, markup=False)


def error(sentence: str) -> None:
    """Print an error as one red line."""
    _stderr().print(f"error: {sentence}", style="red", markup=False)


def table(shown: Table) -> None:
    """Print a table on stderr, numbers aligned to the right."""
    drawn = RichTable(box=None, pad_edge=False, show_header=any(shown.header), header_style="dim")
    for i, heading in enumerate(shown.header):
        drawn.add_column(escape(heading), justify="left" if shown.is_words(i) else "right", overflow="fold")
    for row in shown.text():
        drawn.add_row(*map(escape, row))
    console = _stderr()
    with console.capture() as captured:
        console.print(drawn)
    lines = [line.rstrip() for line in captured.get().splitlines()]
    if shown.title:
        console.print(shown.title, style="bold", markup=False)
    console.out(*lines, sep="\n", end="\n\n", highlight=False)


def show(shown: Show, values: Any, tables: Iterable[Table]) -> None:
    """Print a result: JSON for programs if asked for, else tables for people."""
    if shown.json:
        data(values)
        return
    for one in tables:
        table(one)


def fields(title: str, facts: Mapping[str, Any], shown: Show) -> None:
    """Print named facts, as JSON or as a table of two columns."""
    rows = ((name.replace("_", " "), _spelled(value)) for name, value in facts.items() if value is not None)
    show(shown, facts, [Table.of_words(title, ("", ""), rows)])


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

    def __init__(self, *, quiet: bool, verbose: bool = False) -> None:
        self._quiet = quiet
        self._verbose = verbose
        self._console = _stderr()
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[amount]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}", markup=False),
            console=self._console,
            transient=True,
            refresh_per_second=4,
            get_time=time.monotonic,
            speed_estimate_period=SPEED_SECONDS,
            disable=not self._console.is_terminal,
        )
        self._begun: TaskID | None = None
        """The bar without an end that is shown before anything else is."""

    def begin(self, text: str) -> None:
        """Show the text until there is something else; where there is no terminal, as a line that stays."""
        if self._quiet:
            return
        if self._bars.disable:
            self._console.print(text, markup=False)
            return
        self._bars.start()
        self._begun = self._bars.add_task(text, total=None, amount="", figures="")

    def end(self) -> None:
        """Remove what `begin` has shown, unless something else has come."""
        if self._begun is not None:
            self._bars.remove_task(self._begun)
            self._begun = None
            self._bars.stop()

    def start(self, title: str, total: int | None, unit: str) -> Step:
        if self._quiet:
            return lambda n=1, **figures: None
        self.end()
        self._bars.start()
        return _Loop(self._bars, title, total, unit)

    def finish(self, step: Step) -> None:
        if isinstance(step, _Loop):
            step.close()
        if not self._bars.tasks and not self._bars.disable:
            self._bars.stop()

    def say(self, text: str) -> None:
        if not self._quiet:
            self.end()
            self._console.print(text, markup=False)

    def priced(self, price: "Price") -> None:
        if self._verbose and not self._quiet:
            from minitron_cli.report import price as priced

            self.end()
            for one in priced.tables(price):
                table(one)

    def warn(self, text: str) -> None:
        self.end()
        self._console.print(f"warning: {text}", style="yellow", markup=False)


class _Loop:
    """One running loop, and the lines that it prints where there are no bars."""

    def __init__(self, bars: Progress, title: str, total: int | None, unit: str) -> None:
        self.bars, self.unit, self.last = bars, unit, time.monotonic()
        self.id = bars.add_task(title, total=total, amount="", figures="")
        self.task = bars.tasks[-1]

    def __call__(self, n: int = 1, **figures: float | int | str) -> None:
        amount = _amount(round(self.task.completed) + n, self.task.total, self.unit)
        written = "  ".join(f"{name} {x:.4g}" if isinstance(x, float) else f"{name} {x}" for name, x in figures.items())
        self.bars.update(self.id, advance=n, amount=amount, figures=written or self.task.fields["figures"])
        is_over = self.task.total is not None and self.task.completed >= self.task.total  # `close` prints that line
        if self.bars.disable and not is_over and time.monotonic() - self.last >= LINE_SECONDS:
            self.last = time.monotonic()
            left = self.task.time_remaining
            self._print(f"  {_duration(left)} left" if left else "")

    def close(self) -> None:
        """Remove the bar; a long loop that is in no other one leaves a line."""
        self.bars.remove_task(self.id)
        elapsed = self.task.elapsed or 0
        if not self.bars.tasks and elapsed >= WORTH_A_LINE_SECONDS:
            self._print(f"  in {_duration(elapsed)}")

    def _print(self, end: str) -> None:
        fields = self.task.fields
        line = f"{self.task.description}  {fields['amount']}  {fields['figures']}".rstrip()
        self.bars.console.print(line + end, markup=False)


def _amount(done: float, total: float | None, unit: str) -> str:
    if unit == "bytes":
        size, unit = (1e6, "MB") if max(done, total or 0) >= 1e7 else (1e3, "kB")
        done, total = done / size, total and total / size
    return f"{done:,.0f}" + (f"/{total:,.0f}" if total else "") + f" {unit}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
