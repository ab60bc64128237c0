"""Print results, plans and dry runs, as tables or as JSON."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from minitron_cli.artifacts.artifact import Artifact
from minitron_cli.cli import console
from minitron_cli.cli.options import Show
from minitron_cli.errors import DryRunStop
from minitron_cli.report import price
from minitron_cli.report.view import Table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from minitron_cli.dry_run import Plan
    from minitron_cli.evaluate.gate import Outcome
    from minitron_cli.results.price import Price

TASK_COLUMNS = ("task", "shots", "items", "metrics", "data", "note")


def artifact(made: Artifact, shown: Show) -> None:
    """Print one stage's result."""
    from minitron_cli.cli import tables

    console.show(shown, shown.json and tables.values(made), tables.tables(made))
    for page in (name for name in made.manifest.files if name.endswith(".html") and not shown.json):
        console.note(f"open {made.path / page}")


def artifacts(
    made: Sequence[Artifact], shown: Show, *, in_detail: bool = False, gates: "Sequence[Outcome]" = ()
) -> None:
    """Print the results of several stages; `in_detail`: of importance, with the scores' ranges and correlations.

    `gates`: outcome of every bound on what the last evaluation measured.
    """
    from minitron_cli.cli import tables

    details = [tables.ranked(one) if in_detail else ({}, []) for one in made]
    if gates:
        last = max(i for i, one in enumerate(made) if one.stage == "evaluate")
        details[last] = tables.judged(gates)
    if shown.json:
        console.data([tables.values(one) | values for one, (values, _) in zip(made, details, strict=True)])
        return
    for one, detail in zip(made, details, strict=True):
        console.note(f"{one.stage}  {one.path}")
        artifact(one, shown)
        console.show(shown, *detail)


def plan(planned: "Plan", prices: "Mapping[str, Price]", shown: Show) -> None:
    """Print the shapes, steps and prices of a recipe."""
    from minitron_cli.cli import tables

    values, shapes = tables.planned(planned)
    priced = {"prices": {stage: tables.price_values(one) for stage, one in prices.items()}}
    console.show(shown, values | priced, [*shapes, price.summary(prices)])


def dry_run(stop: DryRunStop, shown: Show) -> None:
    """Print what a dry run would do next."""
    from minitron_cli.cli import tables

    if shown.json:
        known: dict[str, Any] = {"forecast": stop.forecast} if stop.forecast else {}
        known |= {"price": tables.price_values(stop.price)} if stop.price else {}
        console.data({"stage": stop.stage, "path": str(stop.path), "changed": stop.changed} | known)
        return
    console.note(str(stop))
    facts = dict(stop.forecast)
    if tasks := facts.pop("tasks", None):
        rows = ([str(row[name]) for name in TASK_COLUMNS] for row in tasks)
        console.table(Table.of_words("Tasks", TASK_COLUMNS, rows))
    if facts:
        console.fields("", facts, shown)
    if stop.price:
        console.show(shown, {}, price.tables(stop.price))
        for name in stop.price.left_out:
            console.note(f"not in the price: {name}")
