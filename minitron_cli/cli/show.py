"""`minitron show`: current results of the workspace."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_args

from typer import Argument, Option

from minitron_cli import progress
from minitron_cli.cli import output_file
from minitron_cli.cli.options import WorkspaceOptions
from minitron_cli.errors import ArtifactError, InputError

if TYPE_CHECKING:
    from minitron_cli.artifacts.artifact import Artifact
    from minitron_cli.artifacts.workspace import Workspace

# fmt: off
Stage = Literal[
    "importance", "search", "prune", "sparsify", "correct", "teach", "distill", "eval",
    "family", "landscape", "ticket", "transfer", "supermask",
]
# fmt: on
What = Literal[Stage, "cost"]
STAGES: dict[Stage, str] = {s: "evaluate" if s == "eval" else s for s in get_args(Stage)}


def show_results(
    where: WorkspaceOptions,
    stage: Annotated[
        What | None,
        Argument(
            metavar="[STAGE]",
            help="Stage to show: importance, search, prune, sparsify, correct, teach, distill, eval, family, "
            "landscape, ticket, transfer or supermask; or cost.",
        ),
    ] = None,
    plot: Annotated[Path | None, Option(metavar="FILE.svg", help="With importance: also plot it to this file.")] = None,
) -> None:
    """Show the current result of STAGE, or of every stage; `cost` shows tokens, FLOPs and hours."""
    from minitron_cli.artifacts.manifest import command_of
    from minitron_cli.artifacts.workspace import open_workspace
    from minitron_cli.cli import console, printing, tables

    output_file.check(plot)
    if plot and stage != "importance":
        raise InputError("--plot needs the stage: write `minitron show importance --plot FILE.svg`")
    workspace = open_workspace(where.runs_dir, where.run)
    if stage == "cost":
        from minitron_cli.report.product import Product

        product = Product.current(workspace)
        console.show(where, *tables.costs(product.lineage, product.step_labels))
        return
    found, unreadable = _current(workspace, [stage] if stage else list(STAGES))
    if unreadable and not found:
        raise unreadable[0]
    if not found:
        model = " MODEL" if stage in (None, "importance", "landscape", "ticket", "transfer", "supermask") else ""
        command = command_of(STAGES[stage or "importance"])
        raise workspace.lacks(f"{stage} result" if stage else "result", f"{command}{model}")
    if plot:
        _draw(found[0], plot)
    printing.artifacts(found, where, in_detail=stage == "importance")
    if unreadable:
        raise unreadable[0]


def _current(workspace: "Workspace", stages: Sequence[Stage]) -> "tuple[list[Artifact], list[ArtifactError]]":
    """Current results that can be read, and what is wrong with the others; warns of all but the first of them."""
    from minitron_cli.results.of_stage import RESULTS

    found: list[Artifact] = []
    unreadable: list[ArtifactError] = []
    for stage in stages:
        try:
            if made := workspace.current(STAGES[stage]):
                made.result(RESULTS[made.stage])
                found.append(made)
        except ArtifactError as e:
            unreadable.append(e)
    for error in unreadable[1:]:
        progress.warn(str(error))
    return found, unreadable


def _draw(artifact: "Artifact", path: Path) -> None:
    from minitron_cli.cli import console
    from minitron_cli.report.importance import Importance, channels_section, layers_section
    from minitron_cli.report.plots import sheet

    found = Importance.of(artifact)
    output_file.write(path, sheet([*channels_section(found).plots, *layers_section(found).plots]).encode())
    console.note(f"open {path}")
