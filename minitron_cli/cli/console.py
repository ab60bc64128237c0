"""The only printer: people read stderr, programs read JSON on stdout. What the tables hold is up to `tables`."""

import json
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from minitron_cli import process_rank
from minitron_cli.artifacts.artifact import Artifact
from minitron_cli.artifacts.build import DryRunStop
from minitron_cli.cli import plan_sheets, tables
from minitron_cli.cli.options import Show
from minitron_cli.cli.text_table import Sheet
from minitron_cli.progress import Step

if TYPE_CHECKING:
    from minitron_cli.dry_run import Plan

LINE_SECONDS = 10  # between two lines about one loop, where there is no terminal to redraw
WORTH_A_LINE_SECONDS = 2  # loops shorter than this leave no line behind


def result(text: str) -> None:
    """What was asked for, on stdout; of several processes, the first speaks for all."""
    if process_rank.is_first_process():
        print(text)


def data(value: Any) -> None:
    """JSON on stdout."""
    result(json.dumps(value, indent=2, allow_nan=False, default=str))


def note(text: str) -> None:
    """A line for people."""
    _people().print(escape(text))


def plain(text: str) -> None:
    """Text for people, as it is."""
    _people().print(text, markup=False)


def error(sentence: str) -> None:
    """What went wrong and what to do: one red line."""
    _people().print(f"error: {sentence}", style="red", markup=False)


def sheet(shown: Sheet) -> None:
    """A table for people."""
    table = Table(box=None, pad_edge=False, show_header=any(shown.columns))
    for i, column in enumerate(shown.columns):
        is_number = i > 0 and all(_is_number(row[i]) for row in shown.rows)
        table.add_column(escape(column), justify="right" if is_number else "left", header_style="dim", overflow="fold")
    for row in shown.rows:
        table.add_row(*map(escape, row))
    console = _people()
    with console.capture() as drawn:
        console.print(table)
    lines = [line.rstrip() for line in drawn.get().splitlines()]
    if shown.title:
        console.print(shown.title, style="bold", markup=False)
    console.out(*lines, sep="\n", end="\n\n", highlight=False)


def _is_number(text: str) -> bool:
    return text in ("-", "") or text.lstrip("+-")[:1].isdecimal()


def fields(title: str, facts: Mapping[str, Any], shown: Show) -> None:
    """Named facts: JSON, or a table of two columns."""
    if shown.json:
        data(facts)
        return
    rows = [[name.replace("_", " "), _spelled(value)] for name, value in facts.items() if value is not None]
    sheet(Sheet(title, ["", ""], rows))


def _spelled(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_spelled(inner)}" for name, inner in value.items())
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)


def artifact(made: Artifact, shown: Show) -> None:
    """One stage's result."""
    if shown.json:
        data(tables.values(made))
        return
    for one in tables.sheets(made):
        sheet(one)
    for page in (name for name in made.manifest.files if name.endswith(".html")):
        note(f"open {made.path / page}")


def artifacts(made: Sequence[Artifact], shown: Show) -> None:
    """Several stages' results."""
    if shown.json:
        data([tables.values(one) for one in made])
        return
    for one in made:
        note(f"{one.stage}  {one.path}")
        artifact(one, shown)


def plan(planned: "Plan", shown: Show) -> None:
    """What a recipe comes to."""
    if shown.json:
        data(plan_sheets.plan_values(planned))
        return
    for one in plan_sheets.plan_sheets(planned):
        sheet(one)


def planned(work: DryRunStop, shown: Show) -> None:
    """What a dry run would do next."""
    if shown.json:
        known = {"forecast": work.forecast} if work.forecast else {}
        data({"stage": work.stage, "path": str(work.path), "changed": work.changed} | known)
        return
    note(str(work))
    facts = dict(work.forecast)
    if tasks := facts.pop("tasks", None):
        sheet(plan_sheets.task_sheet(tasks))
    if facts:
        fields("", facts, shown)


class _People(Console):
    """Where people read."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError  # rich would exit with 1


def _people() -> Console:
    console = _People(stderr=True, highlight=False, quiet=not process_rank.is_first_process())
    if not console.is_terminal:
        console.width = 10_000  # where no terminal breaks lines, a line stays one line: logs are searched
    return console


# Progress ------------------------------------------------------------------------------------------------------------


class Terminal:
    """A `progress.Display`: bars with what is left on a terminal, a line now and then elsewhere."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._console = _people()
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
    """What is known of one loop while it runs."""

    def __init__(self, console: Console, title: str, total: int | None, unit: str) -> None:
        self.console, self.title, self.total, self.unit = console, title, total, unit
        self.done, self.figures, self.started = 0, "", time.monotonic()
        self.first: tuple[int, float] | None = None  # what was done at the first call, which a resumed loop begins with

    def __call__(self, n: int = 1, **figures: float | int | str) -> None:
        self.done += n
        self.first = self.first or (self.done, time.monotonic())
        self.figures = "  ".join(f"{name} {_figure(value)}" for name, value in figures.items()) or self.figures
        self.show()

    def show(self) -> None:
        """Bring what is on the screen up to date."""

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
        """Seconds, at the speed since the first call."""
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
