"""`minitron show`: current results of the workspace."""

from pathlib import Path
from typing import Annotated, Literal, get_args

from typer import Argument, Option

from minitron_cli.artifacts.artifact import Artifact
from minitron_cli.artifacts.workspace import Workspace, open_workspace
from minitron_cli.cli import console, output_file, printing
from minitron_cli.cli.options import WorkspaceOptions
from minitron_cli.errors import ArtifactError, InputError

Stage = Literal["importance", "search", "prune", "correct", "distill", "eval"]
What = Literal[Stage, "cost"]
STAGES: dict[Stage, str] = {s: "evaluate" if s == "eval" else s for s in get_args(Stage)}


def show_results(
    where: WorkspaceOptions,
    stage: Annotated[
        What | None,
        Argument(
            metavar="[STAGE]", help="Stage to show: importance, search, prune, correct, distill or eval; or cost."
        ),
    ] = None,
    plot: Annotated[Path | None, Option(metavar="FILE.svg", help="With importance: also plot it to this file.")] = None,
) -> None:
    """Show the current result of STAGE, or of every stage; `cost` shows tokens, FLOPs and hours."""
    output_file.check(plot)
    workspace = open_workspace(where.runs_dir, where.run)
    if stage == "cost":
        _cost(workspace, where)
        return
    wanted = [stage] if stage else list(STAGES)
    found = {name: artifact for name in wanted if (artifact := workspace.current(STAGES[name]))}
    if not found:
        command = f"minitron {stage}" if stage else "minitron importance MODEL"
        raise ArtifactError(
            f"workspace {workspace.root} has no {stage or ''} result: run `{command}` first".replace("  ", " ")
        )
    if plot and stage != "importance":
        raise InputError("--plot needs the stage: write `minitron show importance --plot FILE.svg`")
    if plot:
        _draw(found["importance"], plot)
    if stage == "importance":
        _importance(found[stage], where)
    else:
        printing.artifacts(list(found.values()), where)


def _cost(workspace: Workspace, where: WorkspaceOptions) -> None:
    from minitron_cli.cli import tables
    from minitron_cli.report.product import Product

    made_from = Product.current(workspace).lineage
    console.show(where, lambda: tables.costs(made_from), lambda: tables.cost_tables(made_from))


def _importance(artifact: Artifact, where: WorkspaceOptions) -> None:
    from minitron_cli.cli import tables

    ranked = tables.ranked(artifact)
    if where.json:
        console.data([tables.values(artifact) | ranked])
        return
    printing.artifacts([artifact], where)
    for table in tables.ranked_tables(ranked):
        console.table(table)


def _draw(artifact: Artifact, path: Path) -> None:
    from minitron_cli.report.importance import Importance, channels_section, layers_section
    from minitron_cli.report.plots import sheet

    found = Importance.of(artifact)
    output_file.write(path, sheet([*channels_section(found).plots, *layers_section(found).plots]).encode())
    console.note(f"open {path}")
